//! The phenomena that held-out pairs test. Each is one frame: the corpus is written with its grammatical side, and the
//! grammar never produces the other side.
//!
//! A frame has two flips, which exchange the roles of the contrasted words: the word that is right in one flip is wrong
//! in the other. Over both flips a model that knows only word frequencies scores exactly one half.

use super::draft::{Draft, Phrase};
use super::fillers::Fillers;
use super::lexicon::*;

/// Writes the grammatical sentence (true) or its minimal counterpart (false).
pub(super) type Frame = Box<dyn Fn(&mut Draft, bool)>;

/// Tense of the sentences of a phenomenon; a paragraph has one tense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    Past,
    Present,
}

pub(super) struct Phenomenon {
    /// Name of the file and of the test, as in BLiMP.
    pub uid: &'static str,
    pub field: &'static str,
    pub term: &'static str,
    pub time: Time,
    /// Share of the sentences of the corpus, relative to the other phenomena of the tense.
    pub weight: u64,
    /// Whether both sentences have the same words in different order.
    pub lexically_identical: bool,
    /// Arguments: fillers, the choice of contrasted words (shared by both flips), the flip.
    pub frame: fn(&mut Fillers, u64, bool) -> Frame,
}

const fn row(
    uid: &'static str,
    field: &'static str,
    term: &'static str,
    time: Time,
    weight: u64,
    frame: fn(&mut Fillers, u64, bool) -> Frame,
) -> Phenomenon {
    Phenomenon { uid, field, term, time, weight, lexically_identical: false, frame }
}

use Time::{Past, Present};
#[rustfmt::skip]
pub(super) static PHENOMENA: &[Phenomenon] = &[
    row("subject_verb_agreement", "morphology", "subject_verb_agreement", Present, 4, simple_agreement),
    row("agreement_prepositional_phrase", "morphology", "subject_verb_agreement", Present, 8, agreement_over_place),
    row("agreement_relative_clause", "morphology", "subject_verb_agreement", Present, 10, agreement_over_relative),
    row("anaphor_gender_agreement", "morphology", "anaphor_agreement", Past, 10, anaphor_gender),
    row("anaphor_number_agreement", "morphology", "anaphor_agreement", Past, 4, anaphor_number),
    row("determiner_noun_agreement", "morphology", "determiner_noun_agreement", Past, 2, determiner_noun),
    row("determiner_noun_agreement_with_adjective", "morphology", "determiner_noun_agreement", Past, 3, determiner_adjective_noun),
    row("irregular_verb_forms", "morphology", "irregular_forms", Past, 4, irregular_forms),
    row("npi_ever_licensing", "semantics", "npi_licensing", Present, 4, npi_ever),
    row("npi_any_licensing", "semantics", "npi_licensing", Past, 3, npi_any),
    row("wh_vs_that_filler_gap", "syntax", "filler_gap_dependency", Past, 6, filler_gap),
    row("much_vs_many", "semantics", "quantifiers", Past, 3, much_many),
    row("existential_there_quantifiers", "semantics", "quantifiers", Past, 3, existential),
    row("transitivity", "syntax", "argument_structure", Past, 4, transitivity),
    row("passive", "syntax", "argument_structure", Past, 4, passive),
    row("principle_a_c_command", "syntax_semantics", "binding", Past, 5, principle_a_c_command),
    row("principle_a_domain", "syntax_semantics", "binding", Past, 5, principle_a_domain),
    Phenomenon { lexically_identical: true, ..row("adjective_order", "syntax", "adjective_order", Past, 3, adjective_order) },
    row("question_verb_form", "syntax", "auxiliaries", Past, 4, question_verb_form),
];

/// The item of a contrast number.
fn choose<T>(items: &'static [T], contrast: u64) -> &'static T {
    &items[(contrast % items.len() as u64) as usize]
}

fn number_of(flip: bool) -> Number {
    if flip { Number::Plural } else { Number::Singular }
}

fn gender_of(flip: bool) -> Gender {
    if flip { Gender::Feminine } else { Gender::Masculine }
}

/// An intransitive verb or a form of `be` with an adjective, in the present.
#[derive(Clone, Copy)]
enum Predicate {
    Act(&'static Verb),
    Be(&'static str),
}

impl Predicate {
    fn choose(contrast: u64) -> Self {
        match contrast % 4 {
            0 => Self::Be(QUALITIES[(contrast / 4) as usize % QUALITIES.len()]),
            _ => Self::Act(choose(INTRANSITIVE, contrast / 4)),
        }
    }

    fn write(self, d: &mut Draft, number: Number) {
        match (self, number) {
            (Self::Act(verb), _) => {
                d.content(verb.present(number), verb.base);
            }
            (Self::Be(quality), Number::Singular) => {
                d.word("is").content(quality, quality);
            }
            (Self::Be(quality), Number::Plural) => {
                d.word("are").content(quality, quality);
            }
        }
    }
}

/// `The old farmer sleeps near the river.` / `sleep`
fn simple_agreement(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let subject = f.animate(number_of(flip));
    let (predicate, place) = (Predicate::choose(contrast), f.place());
    let verb = choose(TRANSITIVE, contrast / 4);
    let object = f.object(verb);
    let transitive = contrast % 3 == 1;
    Box::new(move |d, good| {
        let number = if good { subject.number() } else { subject.number().other() };
        d.phrase(&subject);
        if transitive {
            d.content(verb.present(number), verb.base).phrase(&object);
        } else {
            predicate.write(d, number);
            d.place(&place);
        }
        d.end('.');
    })
}

/// `The dogs near the house sleep.` / `sleeps`: mostly the place has the other number.
fn agreement_over_place(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let number = number_of(flip);
    let noun = f.animate_noun();
    let subject = f.common(noun, number);
    let place = if f.rng.percent(65) { f.place_in(number.other()) } else { f.place_in(number) };
    let predicate = Predicate::choose(contrast);
    Box::new(move |d, good| {
        d.phrase(&subject).place(&place);
        predicate.write(d, if good { number } else { number.other() });
        d.end('.');
    })
}

/// `The girl that likes the dogs sings.`, `The dogs that the girl likes sleep.` / the last verb in the wrong number
fn agreement_over_relative(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let number = number_of(flip);
    let noun = f.animate_noun();
    let subject = f.definite(noun, number);
    let inner_number = if f.rng.percent(65) { number.other() } else { number };
    let inner = loop {
        let inner = f.animate_noun();
        if inner.singular != noun.singular {
            break f.definite(inner, inner_number);
        }
    };
    let verb = loop {
        let verb = f.rng.pick(TRANSITIVE);
        if verb.object == Some(Object::Animate) || verb.base == "see" {
            break verb;
        }
    };
    let gap_is_subject = f.rng.percent(50);
    let predicate = Predicate::choose(contrast);
    Box::new(move |d, good| {
        d.phrase(&subject).word("that");
        if gap_is_subject {
            d.content(verb.present(number), verb.base).phrase(&inner);
        } else {
            d.phrase(&inner).content(verb.present(inner_number), verb.base);
        }
        predicate.write(d, if good { number } else { number.other() });
        d.end('.');
    })
}

/// `Mary washed herself near the lake.` / `himself`
fn anaphor_gender(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let gender = gender_of(flip);
    let subject = f.gendered(gender, Number::Singular);
    let verb = choose(REFLEXIVE, contrast);
    let place = f.rng.percent(50).then(|| f.place());
    Box::new(move |d, good| {
        d.phrase(&subject).content(verb.past, verb.base);
        d.word(if good { gender } else { gender.other() }.reflexive());
        if let Some(place) = &place {
            d.place(place);
        }
        d.end('.');
    })
}

/// `The boys washed themselves.` / `himself`
fn anaphor_number(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let number = number_of(flip);
    let gender = gender_of(contrast.is_multiple_of(2));
    let subject = f.gendered(gender, number);
    let verb = choose(REFLEXIVE, contrast / 2);
    let place = f.rng.percent(50).then(|| f.place());
    Box::new(move |d, good| {
        d.phrase(&subject).content(verb.past, verb.base);
        d.word(if good == (number == Number::Plural) { "themselves" } else { gender.reflexive() });
        if let Some(place) = &place {
            d.place(place);
        }
        d.end('.');
    })
}

/// `Tom found these boxes.` / `this`
fn determiner_noun(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    demonstrative(f, contrast, flip, false)
}

/// `Tom found these old boxes.` / `box`
fn determiner_adjective_noun(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    demonstrative(f, contrast, flip, true)
}

fn demonstrative(f: &mut Fillers, contrast: u64, flip: bool, adjective: bool) -> Frame {
    let number = number_of(flip);
    let own = f.number();
    let subject = f.person(own);
    let noun = choose(THINGS, contrast);
    let verb = loop {
        let verb = f.rng.pick(TRANSITIVE);
        if matches!(verb.object, Some(Object::Thing | Object::Any)) {
            break verb;
        }
    };
    let adjective = adjective.then(|| f.adjective(noun.kind));
    let plural = if (contrast / 16).is_multiple_of(2) { "these" } else { "those" };
    let place = f.rng.percent(40).then(|| f.place());
    Box::new(move |d, good| {
        // With an adjective between them the noun is the wrong one, without it the determiner.
        let wrong = number.other();
        let (determiner, form) = match (good, adjective) {
            (true, _) => (number, number),
            (false, Some(_)) => (number, wrong),
            (false, None) => (wrong, number),
        };
        d.phrase(&subject).content(verb.past, verb.base);
        d.word(if determiner == Number::Singular { "this" } else { plural });
        if let Some(adjective) = adjective {
            d.content(adjective, adjective);
        }
        d.content(noun.form(form), noun.singular);
        if let Some(place) = &place {
            d.place(place);
        }
        d.end('.');
    })
}

/// `The girl broke the cup.` / `broken`; `The girl had broken the cup.` / `broke`
fn irregular_forms(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let irregular = || TRANSITIVE.iter().filter(|v| v.is_irregular());
    let index = (contrast % irregular().count() as u64) as usize;
    let verb = irregular().nth(index).expect("below the count");
    let number = f.number();
    let (subject, object) = (f.person(number), f.object(verb));
    Box::new(move |d, good| {
        d.phrase(&subject);
        if flip {
            d.word("had");
        }
        d.content(if good == flip { verb.participle } else { verb.past }, verb.base).phrase(&object).end('.');
    })
}

/// `No dog has ever seen the lake.` / `Every`; `Every dog has already seen the lake.` / `No`
fn npi_ever(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let noun = f.animate_noun();
    let adjective = f.rng.percent(25).then(|| f.adjective(noun.kind));
    let intransitive = contrast.is_multiple_of(2);
    let act = f.rng.pick(INTRANSITIVE);
    let verb = f.rng.pick(TRANSITIVE);
    let (object, place) = (f.object(verb), f.place());
    Box::new(move |d, good| {
        d.word(if good != flip { "no" } else { "every" });
        if let Some(adjective) = adjective {
            d.content(adjective, adjective);
        }
        d.content(noun.singular, noun.singular).word("has").word(if flip { "already" } else { "ever" });
        if intransitive {
            d.content(act.participle, act.base).place(&place);
        } else {
            d.content(verb.participle, verb.base).phrase(&object);
        }
        d.end('.');
    })
}

/// `Tom did not find any stones.` / `indeed`; `Tom did indeed find some stones.` / `not`
fn npi_any(f: &mut Fillers, _contrast: u64, flip: bool) -> Frame {
    let number = f.number();
    let subject = f.person(number);
    let verb = f.rng.pick(TRANSITIVE);
    let noun = f.object_noun(verb);
    let adjective = f.rng.percent(25).then(|| f.adjective(noun.kind));
    let place = f.rng.percent(30).then(|| f.place());
    Box::new(move |d, good| {
        d.phrase(&subject).word("did").word(if good != flip { "not" } else { "indeed" });
        d.content(verb.base, verb.base).word(if flip { "some" } else { "any" });
        if let Some(adjective) = adjective {
            d.content(adjective, adjective);
        }
        d.content(noun.plural, noun.singular);
        if let Some(place) = &place {
            d.place(place);
        }
        d.end('.');
    })
}

/// `Tom knew what the girl found.` / `that`; `Tom knew that the girl found the key.` / `what`
fn filler_gap(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let number = f.number();
    let (who, knew) = (f.person(number), choose(COGNITIVE, contrast));
    let number = f.number();
    let inner = f.person(number);
    let verb = loop {
        let verb = f.rng.pick(TRANSITIVE);
        // `what` asks for things, and persons need `whom`.
        if verb.object != Some(Object::Animate) {
            break verb;
        }
    };
    let object = f.object(verb);
    Box::new(move |d, good| {
        d.phrase(&who).content(knew.past, knew.base).word(if good == flip { "that" } else { "what" });
        d.phrase(&inner).content(verb.past, verb.base);
        if flip {
            d.phrase(&object);
        }
        d.end('.');
    })
}

/// `There was much water near the barn.`, `Tom found many apples.` / the other quantifier
fn much_many(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    const VERBS: &[&str] = &["buy", "find", "take", "see", "want", "steal"];
    let verb = TRANSITIVE.iter().find(|v| v.base == *f.rng.pick(VERBS)).unwrap_or(&TRANSITIVE[0]);
    let mass = f.word(MASS);
    let count = if f.rng.percent(50) { f.rng.pick(FOODS) } else { f.rng.pick(THINGS) };
    let number = f.number();
    let (subject, place) = (f.person(number), f.place());
    let there = contrast.is_multiple_of(2);
    Box::new(move |d, good| {
        match (there, flip) {
            (false, _) => d.phrase(&subject).content(verb.past, verb.base),
            (true, false) => d.words("there was"),
            (true, true) => d.words("there were"),
        };
        d.word(if good == flip { "many" } else { "much" });
        match flip {
            false => d.content(mass, mass),
            true => d.content(count.plural, count.singular),
        };
        if there {
            d.place(&place);
        }
        d.end('.');
    })
}

/// `There was a dog near the barn.` / `every`; `Almost every dog was near the barn.` / `a`
fn existential(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let noun = loop {
        let kind = *f.rng.pick(&[Kind::Human, Kind::Animal, Kind::Thing]);
        let noun = f.noun(kind);
        // `a` against `every`, never `an`: the words that differ must be the same in both flips.
        if !noun.singular.starts_with(['a', 'e', 'i', 'o', 'u']) {
            break noun;
        }
    };
    let size = f.rng.percent(30).then(|| f.word(SIZES));
    let place = f.place();
    let almost = if contrast.is_multiple_of(2) { "almost" } else { "nearly" };
    Box::new(move |d, good| {
        match flip {
            false => d.words("there was"),
            true => d.word(almost),
        };
        d.word(if good == flip { "every" } else { "a" });
        if let Some(size) = size {
            d.content(size, size);
        }
        d.content(noun.singular, noun.singular);
        if flip {
            d.word("was");
        }
        d.place(&place).end('.');
    })
}

/// `The girl carried the basket.` / `slept`; `The girl slept near the river.` / `carried`
fn transitivity(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let (verb, act) = (choose(TRANSITIVE, contrast), choose(INTRANSITIVE, contrast / 64));
    let number = f.number();
    let (subject, object, place) = (f.person(number), f.object(verb), f.place());
    Box::new(move |d, good| {
        let form = if good == flip { act } else { verb };
        d.phrase(&subject).content(form.past, form.base);
        match flip {
            false => d.phrase(&object),
            true => d.place(&place),
        };
        d.end('.');
    })
}

/// `The basket was carried by the girl.` / `laughed`; `The girl had laughed by the river.` / `carried`
fn passive(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let (verb, act) = (choose(TRANSITIVE, contrast), choose(INTRANSITIVE, contrast / 64));
    let number = f.number();
    let (agent, object) = (f.person(number), f.object(verb));
    let (_, place) = f.place();
    Box::new(move |d, good| {
        let form = if good == flip { act } else { verb };
        match (flip, object.number()) {
            (true, _) => d.phrase(&agent).word("had"),
            (false, Number::Singular) => d.phrase(&object).word("was"),
            (false, Number::Plural) => d.phrase(&object).word("were"),
        };
        d.content(form.participle, form.base).word("by");
        d.phrase(if flip { &place } else { &agent }).end('.');
    })
}

/// `The girl that saw Tom washed herself.` / `himself`: the nearer name has the other gender.
fn principle_a_c_command(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let gender = gender_of(flip);
    let noun = match gender {
        Gender::Masculine => f.rng.pick(MEN),
        Gender::Feminine => f.rng.pick(WOMEN),
    };
    let subject = f.definite(noun, Number::Singular);
    let near = f.gendered(gender.other(), Number::Singular);
    let verb = loop {
        let verb = f.rng.pick(TRANSITIVE);
        if verb.object == Some(Object::Animate) || verb.base == "see" {
            break verb;
        }
    };
    let own = choose(REFLEXIVE, contrast);
    Box::new(move |d, good| {
        d.phrase(&subject).word("that").content(verb.past, verb.base).phrase(&near);
        d.content(own.past, own.base).word(if good { gender } else { gender.other() }.reflexive()).end('.');
    })
}

/// `Tom said that Mary washed herself.` / `himself`: the nearer name is the right one.
fn principle_a_domain(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let gender = gender_of(flip);
    let (far, near) = (f.gendered(gender.other(), Number::Singular), f.gendered(gender, Number::Singular));
    let (said, own) = (f.rng.pick(SPEECH), choose(REFLEXIVE, contrast));
    Box::new(move |d, good| {
        d.phrase(&far).content(said.past, said.base).word("that").phrase(&near);
        d.content(own.past, own.base).word(if good { gender } else { gender.other() }.reflexive()).end('.');
    })
}

/// `Mary found the big red ball.` / `red big`
fn adjective_order(f: &mut Fillers, _contrast: u64, _flip: bool) -> Frame {
    let number = f.number();
    let subject = f.person(number);
    let verb = loop {
        let verb = f.rng.pick(TRANSITIVE);
        if matches!(verb.object, Some(Object::Thing | Object::Any)) {
            break verb;
        }
    };
    let number = f.number();
    let noun = f.noun(Kind::Thing);
    let (size, color) = (f.word(SIZES), f.word(COLORS));
    Box::new(move |d, good| {
        let adjectives = if good { [Some(size), Some(color)] } else { [Some(color), Some(size)] };
        let object = Phrase::Common { determiner: "the", adjectives, noun, number };
        d.phrase(&subject).content(verb.past, verb.base).phrase(&object).end('.');
    })
}

/// `Did the girl see the dog?` / `saw`; `Yesterday the girl saw the dog.` / `see`
fn question_verb_form(f: &mut Fillers, contrast: u64, flip: bool) -> Frame {
    let verb = choose(TRANSITIVE, contrast);
    let number = f.number();
    let (subject, object) = (f.person(number), f.object(verb));
    Box::new(move |d, good| {
        d.word(if flip { "yesterday" } else { "did" }).phrase(&subject);
        d.content(if good == flip { verb.past } else { verb.base }, verb.base).phrase(&object);
        d.end(if flip { '.' } else { '?' });
    })
}
