//! Chooses words that fit together.

use super::draft::Phrase;
use super::lexicon::*;
use squat_quant::random::SplitMix64;

/// The characters and things of a paragraph; phrases prefer them, so that its sentences are connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast {
    pub hero: &'static Name,
    pub friend: &'static Name,
    pub animal: &'static Noun,
    pub thing: &'static Noun,
    pub place: &'static Noun,
}

/// A source of random phrases.
#[derive(Clone, Debug)]
pub(super) struct Fillers {
    pub rng: SplitMix64,
    pub cast: Option<Cast>,
}

impl Fillers {
    pub(super) fn new(rng: SplitMix64) -> Self {
        Self { rng, cast: None }
    }

    pub(super) fn new_cast(&mut self) -> Cast {
        let (hero, friend) = self.two_names();
        let cast = Cast {
            hero,
            friend,
            animal: self.rng.pick(ANIMALS),
            thing: self.rng.pick(THINGS),
            place: self.rng.pick(PLACES),
        };
        self.cast = Some(cast);
        cast
    }

    /// One word of a list.
    pub(super) fn word(&mut self, words: &[&'static str]) -> &'static str {
        words[self.rng.below(words.len() as u64) as usize]
    }

    pub(super) fn number(&mut self) -> Number {
        if self.rng.percent(50) { Number::Singular } else { Number::Plural }
    }

    pub(super) fn gender(&mut self) -> Gender {
        if self.rng.percent(50) { Gender::Masculine } else { Gender::Feminine }
    }

    pub(super) fn name(&mut self, gender: Gender) -> &'static Name {
        if let Some(cast) = self.cast
            && self.rng.percent(50)
        {
            let known = [cast.hero, cast.friend];
            if let Some(name) = known.iter().find(|n| n.gender == gender) {
                return name;
            }
        }
        self.rng.pick(NAMES[gender as usize])
    }

    fn two_names(&mut self) -> (&'static Name, &'static Name) {
        let gender = self.gender();
        let first = self.rng.pick(NAMES[gender as usize]);
        let gender = self.gender();
        loop {
            let second = self.rng.pick(NAMES[gender as usize]);
            if second.form != first.form {
                return (first, second);
            }
        }
    }

    /// A person of a gender: a name or a noun.
    pub(super) fn gendered(&mut self, gender: Gender, number: Number) -> Phrase {
        if number == Number::Singular && self.rng.percent(60) {
            return Phrase::Name(self.name(gender));
        }
        let noun = match gender {
            Gender::Masculine => self.rng.pick(MEN),
            Gender::Feminine => self.rng.pick(WOMEN),
        };
        self.common(noun, number)
    }

    /// A noun for a person.
    fn human(&mut self) -> &'static Noun {
        match self.rng.below(3) {
            0 => self.rng.pick(MEN),
            1 => self.rng.pick(WOMEN),
            _ => self.rng.pick(PEOPLE),
        }
    }

    /// A person, in a given number.
    pub(super) fn person(&mut self, number: Number) -> Phrase {
        match number {
            Number::Singular if self.rng.percent(45) => {
                let gender = self.gender();
                Phrase::Name(self.name(gender))
            }
            Number::Plural if self.rng.percent(15) => {
                let (one, two) = self.two_names();
                Phrase::Both(one, two)
            }
            _ => {
                let noun = self.human();
                self.common(noun, number)
            }
        }
    }

    /// A person or an animal.
    pub(super) fn animate(&mut self, number: Number) -> Phrase {
        if self.rng.percent(35) {
            let noun = self.noun(Kind::Animal);
            return self.common(noun, number);
        }
        self.person(number)
    }

    /// A person or an animal by a noun, for positions that do not allow a name.
    pub(super) fn animate_noun(&mut self) -> &'static Noun {
        if self.rng.percent(40) { self.noun(Kind::Animal) } else { self.human() }
    }

    pub(super) fn noun(&mut self, kind: Kind) -> &'static Noun {
        let remembered = self.cast.filter(|_| self.rng.percent(40));
        match (kind, remembered) {
            (Kind::Animal, Some(cast)) => cast.animal,
            (Kind::Thing, Some(cast)) => cast.thing,
            (Kind::Place, Some(cast)) => cast.place,
            (Kind::Human, _) => self.human(),
            (Kind::Animal, None) => self.rng.pick(ANIMALS),
            (Kind::Thing, None) => self.rng.pick(THINGS),
            (Kind::Food, _) => self.rng.pick(FOODS),
            (Kind::Place, None) => self.rng.pick(PLACES),
        }
    }

    /// A kind of noun that a verb allows.
    pub(super) fn object_kind(&mut self, object: Object) -> Kind {
        let kinds: &[Kind] = match object {
            Object::Animate => &[Kind::Human, Kind::Animal],
            Object::Thing => &[Kind::Thing],
            Object::Food => &[Kind::Food],
            Object::Any => &[Kind::Thing, Kind::Animal, Kind::Human],
        };
        *self.rng.pick(kinds)
    }

    /// A noun that a verb allows.
    pub(super) fn object_noun(&mut self, verb: &Verb) -> &'static Noun {
        let kind = self.object_kind(verb.object.unwrap_or(Object::Any));
        self.noun(kind)
    }

    /// An object for a verb.
    pub(super) fn object(&mut self, verb: &Verb) -> Phrase {
        let number = self.number();
        match self.object_kind(verb.object.unwrap_or(Object::Any)) {
            Kind::Human => self.person(number),
            kind => {
                let noun = self.noun(kind);
                self.common(noun, number)
            }
        }
    }

    /// A determiner, optional adjectives, and the noun.
    pub(super) fn common(&mut self, noun: &'static Noun, number: Number) -> Phrase {
        let roll = self.rng.below(100);
        let determiner = match number {
            Number::Singular => match roll {
                0..58 => "the",
                58..82 => "a",
                _ => "this",
            },
            Number::Plural => match roll {
                0..56 => "the",
                56..66 => "some",
                66..74 => "two",
                74..82 => "three",
                82..92 => "these",
                _ => "those",
            },
        };
        let adjectives = self.adjectives(noun.kind);
        Phrase::Common { determiner, adjectives, noun, number }
    }

    /// A definite phrase with at most one adjective.
    pub(super) fn definite(&mut self, noun: &'static Noun, number: Number) -> Phrase {
        let adjectives =
            if self.rng.percent(15) { [Some(self.adjective(noun.kind)), None] } else { [None; 2] };
        Phrase::Common { determiner: "the", adjectives, noun, number }
    }

    fn adjectives(&mut self, kind: Kind) -> [Option<&'static str>; 2] {
        match self.rng.below(100) {
            0..70 => [None; 2],
            70..93 => [Some(self.adjective(kind)), None],
            // Size always before color.
            _ => [Some(self.word(SIZES)), Some(self.second_adjective(kind))],
        }
    }

    /// An adjective that suits a kind of noun.
    pub(super) fn adjective(&mut self, kind: Kind) -> &'static str {
        match (kind, self.rng.below(3)) {
            (Kind::Human, 0 | 1) | (Kind::Animal, 0) => self.word(QUALITIES),
            (Kind::Human, _) => "old",
            (Kind::Thing | Kind::Place, 0) => self.word(&["old", "new"]),
            (Kind::Animal | Kind::Thing | Kind::Place, 1) => self.word(COLORS),
            _ => self.word(SIZES),
        }
    }

    fn second_adjective(&mut self, kind: Kind) -> &'static str {
        match kind {
            Kind::Human => "old",
            _ => self.word(COLORS),
        }
    }

    /// A preposition and a place.
    pub(super) fn place(&mut self) -> (&'static str, Phrase) {
        let number = if self.rng.percent(75) { Number::Singular } else { Number::Plural };
        self.place_in(number)
    }

    /// A preposition and a place in a given number.
    pub(super) fn place_in(&mut self, number: Number) -> (&'static str, Phrase) {
        let noun = self.noun(Kind::Place);
        (self.word(PREPOSITIONS), self.definite(noun, number))
    }
}
