//! Paragraphs: a hero, a friend, and what happens to them, in the past or in the present.

use super::draft::{Draft, Phrase};
use super::fillers::{Cast, Fillers};
use super::lexicon::*;
use super::phenomena::{PHENOMENA, Time};
use squat_quant::random::SplitMix64;

/// How many sentences in 100 tell the story instead of showing a phenomenon.
const NARRATIVE: u64 = 40;

/// An endless sequence of paragraphs.
#[derive(Clone, Debug)]
pub(super) struct Paragraphs {
    fillers: Fillers,
    draft: Draft,
    /// Total weight of the phenomena of each tense.
    weights: [u64; 2],
}

impl Paragraphs {
    pub(super) fn new(rng: SplitMix64) -> Self {
        let weight = |time| PHENOMENA.iter().filter(|p| p.time == time).map(|p| p.weight).sum();
        Self {
            fillers: Fillers::new(rng),
            draft: Draft::default(),
            weights: [weight(Time::Past), weight(Time::Present)],
        }
    }

    /// The next paragraph, without a line break. Returns it with its number of words.
    pub(super) fn paragraph(&mut self) -> (String, u64) {
        let cast = self.fillers.new_cast();
        let time = if self.fillers.rng.percent(62) { Time::Past } else { Time::Present };
        let sentences = 5 + self.fillers.rng.below(6);
        let mut text = String::with_capacity(64 * sentences as usize);
        for index in 0..sentences {
            loop {
                self.draft.clear();
                let last = index + 1 == sentences;
                match (index, time) {
                    (0, _) => self.opening(&cast, time),
                    (_, Time::Past) if last && self.fillers.rng.percent(60) => self.ending(),
                    _ if self.fillers.rng.percent(NARRATIVE) => self.narrative(&cast, time),
                    _ => self.phenomenon(time),
                }
                if !self.draft.is_reserved() {
                    break;
                }
            }
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&self.draft.text);
        }
        let words = text.bytes().filter(|b| *b == b' ').count() as u64 + 1;
        (text, words)
    }

    fn phenomenon(&mut self, time: Time) {
        let f = &mut self.fillers;
        let mut at = f.rng.below(self.weights[usize::from(time == Time::Present)]);
        for phenomenon in PHENOMENA.iter().filter(|p| p.time == time) {
            if at < phenomenon.weight {
                let (contrast, flip) = (f.rng.next_u64() >> 8, f.rng.percent(50));
                (phenomenon.frame)(f, contrast, flip)(&mut self.draft, true);
                return;
            }
            at -= phenomenon.weight;
        }
    }

    fn opening(&mut self, cast: &Cast, time: Time) {
        let (f, d) = (&mut self.fillers, &mut self.draft);
        let hero = Phrase::Name(cast.hero);
        let (_, place) = f.place();
        let gender = cast.hero.gender;
        let noun = match gender {
            Gender::Masculine => &MEN[0],
            Gender::Feminine => &WOMEN[0],
        };
        let quality = f.word(QUALITIES);
        match (time, f.rng.below(4)) {
            (Time::Past, 0) => {
                d.words("one day").phrase(&hero).words("walked to").phrase(&place);
            }
            (Time::Past, 1) => {
                d.words("one day").phrase(&hero).word("and").phrase(&Phrase::Name(cast.friend));
                d.words("walked to").phrase(&place);
            }
            (Time::Past, 2) => {
                d.words("once there was a").content(quality, quality).content(noun.singular, noun.singular);
                d.words("with the name").phrase(&hero);
            }
            (Time::Past, _) => {
                let thing = f.common(cast.thing, Number::Singular);
                d.phrase(&hero).word("was").content(quality, quality).words("and had").phrase(&thing);
            }
            (Time::Present, 0 | 1) => {
                d.phrase(&hero).words("is a").content(quality, quality).content(noun.singular, noun.singular);
            }
            (Time::Present, 2) => {
                let animal = f.common(cast.animal, Number::Singular);
                d.phrase(&hero).words("has").phrase(&animal);
            }
            (Time::Present, _) => {
                d.words("every day").phrase(&hero).words("walks to").phrase(&place);
            }
        }
        d.end('.');
    }

    fn ending(&mut self) {
        let (f, d) = (&mut self.fillers, &mut self.draft);
        let act = f.rng.pick(INTRANSITIVE);
        match f.rng.below(3) {
            0 => d.words("in the end they went home and").content(act.past, act.base),
            1 => {
                let quality = f.word(QUALITIES);
                d.words("at night they were")
                    .content(quality, quality)
                    .word("and")
                    .content(act.past, act.base)
            }
            _ => d.words("after that they all").content(act.past, act.base).words("together"),
        };
        d.end('.');
    }

    fn narrative(&mut self, cast: &Cast, time: Time) {
        let (f, d) = (&mut self.fillers, &mut self.draft);
        let (hero, friend) = (Phrase::Name(cast.hero), Phrase::Name(cast.friend));
        let pronoun = cast.hero.gender.subject();
        let act = f.rng.pick(INTRANSITIVE);
        let verb = if f.rng.percent(25) { f.rng.pick(REFLEXIVE) } else { f.rng.pick(TRANSITIVE) };
        let object = f.object(verb);
        let place = f.place();
        let quality = f.word(QUALITIES);
        match (time, f.rng.below(16)) {
            (Time::Past, 0) => d.word(pronoun).content(act.past, act.base).place(&place),
            (Time::Past, 1) => d.word("then").word(pronoun).content(verb.past, verb.base).phrase(&object),
            (Time::Past, 2) => d
                .phrase(&friend)
                .content(verb.past, verb.base)
                .phrase(&object)
                .word("and")
                .content(act.past, act.base),
            (Time::Past, 3) => {
                let said = f.rng.pick(SPEECH);
                d.phrase(&friend).content(said.past, said.base).word("that").word(pronoun).word("was");
                d.content(quality, quality)
            }
            (Time::Past, 4) => d.words("soon they").content(act.past, act.base).place(&place),
            (Time::Past, 5) => {
                d.word("who").content(verb.past, verb.base).phrase(&object).end('?');
                d.phrase(&hero).words("did")
            }
            (Time::Past, 6) if !matches!(verb.object, Some(Object::Animate)) => {
                d.words("what did").phrase(&friend).content(verb.base, verb.base).end('?');
                d.word(if f.rng.percent(50) { "It" } else { "Maybe it" }).word("was").phrase(&object)
            }
            (Time::Past, 9..=14) => {
                // `The king himself ...`: a noun next to the pronoun of its gender.
                let gender = f.gender();
                let owner = f.gendered(gender, Number::Singular);
                d.phrase(&owner).word(gender.reflexive()).content(verb.past, verb.base).phrase(&object)
            }
            (Time::Past, 7 | 8) => {
                // A possessive as near to its owner as possible: the easiest place to learn the gender of a name.
                let gender = f.gender();
                let owner = f.gendered(gender, Number::Singular);
                let own = thing_verb(f);
                d.phrase(&owner).content(own.past, own.base).word(gender.possessive());
                own_thing(f, d)
            }
            (Time::Past, _) => {
                let yes = f.rng.percent(50);
                d.word("did").phrase(&hero).content(verb.base, verb.base).phrase(&object).end('?');
                d.words(if yes { "Yes," } else { "No," }).word(pronoun);
                d.words(if yes { "did" } else { "did not" })
            }
            (Time::Present, 0) => d.word(pronoun).content(verb.third, verb.base).phrase(&object),
            (Time::Present, 1) => d.word(pronoun).word("is").content(quality, quality),
            (Time::Present, 2) => d.words("they").content(act.base, act.base).place(&place),
            (Time::Present, 3) => {
                let number = f.number();
                let noun = f.animate_noun();
                let many = f.common(noun, number);
                d.phrase(&many)
                    .word(if number == Number::Singular { "is" } else { "are" })
                    .content(quality, quality)
            }
            (Time::Present, 4) => {
                let number = f.number();
                let somebody = f.person(number);
                d.phrase(&somebody).content(verb.present(number), verb.base).phrase(&object)
            }
            (Time::Present, 5) => {
                let number = f.number();
                let somebody = f.animate(number);
                d.words(if number == Number::Singular { "does" } else { "do" }).phrase(&somebody);
                d.content(verb.base, verb.base).phrase(&object).end('?');
                return d.word(if f.rng.percent(50) { "Yes" } else { "No" }).end('.');
            }
            (Time::Present, 6) => {
                d.phrase(&hero).word("and").phrase(&friend).content(act.base, act.base).words("every day")
            }
            (Time::Present, 9..=14) => {
                let gender = f.gender();
                let owner = f.gendered(gender, Number::Singular);
                d.phrase(&owner).word(gender.reflexive()).content(verb.third, verb.base).phrase(&object)
            }
            (Time::Present, 7 | 8) => {
                let gender = f.gender();
                let owner = f.gendered(gender, Number::Singular);
                let own = thing_verb(f);
                d.phrase(&owner).content(own.third, own.base).word(gender.possessive());
                own_thing(f, d)
            }
            (Time::Present, _) => {
                d.words("at night").phrase(&hero).content(act.third, act.base).place(&place)
            }
        };
        d.end('.');
    }
}

/// A verb whose object is a thing.
fn thing_verb(f: &mut Fillers) -> &'static Verb {
    loop {
        let verb = f.rng.pick(TRANSITIVE);
        if verb.object == Some(Object::Thing) {
            return verb;
        }
    }
}

/// The noun after a possessive.
fn own_thing<'a>(f: &mut Fillers, d: &'a mut Draft) -> &'a mut Draft {
    let number = f.number();
    let noun = f.noun(Kind::Thing);
    if f.rng.percent(25) {
        let adjective = f.adjective(noun.kind);
        d.content(adjective, adjective);
    }
    d.content(noun.form(number), noun.singular)
}
