//! The words of the generated English: few enough that a model of a million parameters sees each of them thousands of
//! times.
//!
//! Every form belongs to only one lemma (a test checks this), so the lemmas of a sentence follow from its words.

/// What a noun denotes, which decides where it may occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Human,
    Animal,
    Thing,
    Food,
    Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gender {
    Masculine,
    Feminine,
}

impl Gender {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Masculine => Self::Feminine,
            Self::Feminine => Self::Masculine,
        }
    }

    pub(super) fn reflexive(self) -> &'static str {
        match self {
            Self::Masculine => "himself",
            Self::Feminine => "herself",
        }
    }

    pub(super) fn possessive(self) -> &'static str {
        match self {
            Self::Masculine => "his",
            Self::Feminine => "her",
        }
    }

    pub(super) fn subject(self) -> &'static str {
        match self {
            Self::Masculine => "he",
            Self::Feminine => "she",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Singular,
    Plural,
}

impl Number {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Singular => Self::Plural,
            Self::Plural => Self::Singular,
        }
    }
}

#[derive(Debug)]
pub(super) struct Noun {
    pub singular: &'static str,
    pub plural: &'static str,
    pub kind: Kind,
}

impl Noun {
    pub(super) fn form(&self, number: Number) -> &'static str {
        match number {
            Number::Singular => self.singular,
            Number::Plural => self.plural,
        }
    }
}

#[derive(Debug)]
pub(super) struct Name {
    pub form: &'static str,
    pub gender: Gender,
}

/// What a transitive verb allows as its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Animate,
    Thing,
    Food,
    Any,
}

#[derive(Debug)]
pub(super) struct Verb {
    pub base: &'static str,
    /// Third person singular present.
    pub third: &'static str,
    pub past: &'static str,
    pub participle: &'static str,
    /// `None` for verbs without an object.
    pub object: Option<Object>,
}

impl Verb {
    pub(super) fn present(&self, number: Number) -> &'static str {
        match number {
            Number::Singular => self.third,
            Number::Plural => self.base,
        }
    }

    /// Whether past and participle differ.
    pub(super) fn is_irregular(&self) -> bool {
        self.past != self.participle
    }
}

const fn noun(singular: &'static str, plural: &'static str, kind: Kind) -> Noun {
    Noun { singular, plural, kind }
}

const fn verb(
    base: &'static str,
    third: &'static str,
    past: &'static str,
    participle: &'static str,
    object: Object,
) -> Verb {
    Verb { base, third, past, participle, object: Some(object) }
}

const fn act(base: &'static str, third: &'static str, past: &'static str, participle: &'static str) -> Verb {
    Verb { base, third, past, participle, object: None }
}

const fn he(form: &'static str) -> Name {
    Name { form, gender: Gender::Masculine }
}

const fn she(form: &'static str) -> Name {
    Name { form, gender: Gender::Feminine }
}

pub(super) static NAMES: [&[Name]; 2] = [
    &[he("Tom"), he("Ben"), he("Sam"), he("Paul"), he("Peter"), he("Henry")],
    &[she("Mary"), she("Anna"), she("Lucy"), she("Emma"), she("Alice"), she("Sarah")],
];

pub(super) static MEN: &[Noun] = &[
    noun("boy", "boys", Kind::Human),
    noun("man", "men", Kind::Human),
    noun("king", "kings", Kind::Human),
    noun("brother", "brothers", Kind::Human),
    noun("father", "fathers", Kind::Human),
];

pub(super) static WOMEN: &[Noun] = &[
    noun("girl", "girls", Kind::Human),
    noun("woman", "women", Kind::Human),
    noun("queen", "queens", Kind::Human),
    noun("sister", "sisters", Kind::Human),
    noun("mother", "mothers", Kind::Human),
];

pub(super) static PEOPLE: &[Noun] = &[
    noun("teacher", "teachers", Kind::Human),
    noun("doctor", "doctors", Kind::Human),
    noun("farmer", "farmers", Kind::Human),
    noun("baker", "bakers", Kind::Human),
    noun("sailor", "sailors", Kind::Human),
    noun("neighbor", "neighbors", Kind::Human),
    noun("child", "children", Kind::Human),
];

pub(super) static ANIMALS: &[Noun] = &[
    noun("dog", "dogs", Kind::Animal),
    noun("cat", "cats", Kind::Animal),
    noun("bird", "birds", Kind::Animal),
    noun("horse", "horses", Kind::Animal),
    noun("rabbit", "rabbits", Kind::Animal),
    noun("fox", "foxes", Kind::Animal),
    noun("bear", "bears", Kind::Animal),
    noun("goat", "goats", Kind::Animal),
    noun("frog", "frogs", Kind::Animal),
    noun("mouse", "mice", Kind::Animal),
    noun("goose", "geese", Kind::Animal),
    noun("wolf", "wolves", Kind::Animal),
];

pub(super) static THINGS: &[Noun] = &[
    noun("ball", "balls", Kind::Thing),
    noun("book", "books", Kind::Thing),
    noun("box", "boxes", Kind::Thing),
    noun("cup", "cups", Kind::Thing),
    noun("lamp", "lamps", Kind::Thing),
    noun("hat", "hats", Kind::Thing),
    noun("basket", "baskets", Kind::Thing),
    noun("chair", "chairs", Kind::Thing),
    noun("stone", "stones", Kind::Thing),
    noun("map", "maps", Kind::Thing),
    noun("coin", "coins", Kind::Thing),
    noun("key", "keys", Kind::Thing),
    noun("bell", "bells", Kind::Thing),
    noun("ring", "rings", Kind::Thing),
    noun("knife", "knives", Kind::Thing),
    noun("flower", "flowers", Kind::Thing),
];

pub(super) static FOODS: &[Noun] = &[
    noun("apple", "apples", Kind::Food),
    noun("cake", "cakes", Kind::Food),
    noun("pie", "pies", Kind::Food),
    noun("egg", "eggs", Kind::Food),
    noun("pear", "pears", Kind::Food),
    noun("carrot", "carrots", Kind::Food),
];

pub(super) static PLACES: &[Noun] = &[
    noun("house", "houses", Kind::Place),
    noun("garden", "gardens", Kind::Place),
    noun("river", "rivers", Kind::Place),
    noun("forest", "forests", Kind::Place),
    noun("school", "schools", Kind::Place),
    noun("market", "markets", Kind::Place),
    noun("hill", "hills", Kind::Place),
    noun("bridge", "bridges", Kind::Place),
    noun("tree", "trees", Kind::Place),
    noun("barn", "barns", Kind::Place),
    noun("lake", "lakes", Kind::Place),
    noun("tower", "towers", Kind::Place),
];

/// Nouns without a plural, for `much`.
pub(super) static MASS: &[&str] =
    &["water", "milk", "bread", "rice", "soup", "sugar", "honey", "butter", "sand", "gold"];

/// Adjectives come in this order: size, age, color.
pub(super) static SIZES: &[&str] = &["big", "small", "little", "huge", "tiny"];
pub(super) static COLORS: &[&str] = &["red", "green", "blue", "white", "black", "brown", "yellow", "gray"];
pub(super) static QUALITIES: &[&str] =
    &["happy", "sad", "kind", "brave", "tired", "hungry", "quiet", "gentle", "clever", "lazy"];

pub(super) static INTRANSITIVE: &[Verb] = &[
    act("sleep", "sleeps", "slept", "slept"),
    act("dance", "dances", "danced", "danced"),
    act("laugh", "laughs", "laughed", "laughed"),
    act("smile", "smiles", "smiled", "smiled"),
    act("wait", "waits", "waited", "waited"),
    act("swim", "swims", "swam", "swum"),
    act("sing", "sings", "sang", "sung"),
    act("cry", "cries", "cried", "cried"),
    act("jump", "jumps", "jumped", "jumped"),
    act("rest", "rests", "rested", "rested"),
    act("shout", "shouts", "shouted", "shouted"),
    act("stand", "stands", "stood", "stood"),
];

pub(super) static TRANSITIVE: &[Verb] = &[
    verb("carry", "carries", "carried", "carried", Object::Thing),
    verb("drop", "drops", "dropped", "dropped", Object::Thing),
    verb("hold", "holds", "held", "held", Object::Thing),
    verb("want", "wants", "wanted", "wanted", Object::Thing),
    verb("buy", "buys", "bought", "bought", Object::Thing),
    verb("take", "takes", "took", "taken", Object::Thing),
    verb("break", "breaks", "broke", "broken", Object::Thing),
    verb("steal", "steals", "stole", "stolen", Object::Thing),
    verb("hide", "hides", "hid", "hidden", Object::Thing),
    verb("throw", "throws", "threw", "thrown", Object::Thing),
    verb("choose", "chooses", "chose", "chosen", Object::Thing),
    verb("shake", "shakes", "shook", "shaken", Object::Thing),
    verb("draw", "draws", "drew", "drawn", Object::Any),
    verb("see", "sees", "saw", "seen", Object::Any),
    verb("find", "finds", "found", "found", Object::Any),
    verb("forget", "forgets", "forgot", "forgotten", Object::Any),
    verb("eat", "eats", "ate", "eaten", Object::Food),
    verb("bake", "bakes", "baked", "baked", Object::Food),
    verb("bite", "bites", "bit", "bitten", Object::Food),
    verb("like", "likes", "liked", "liked", Object::Animate),
    verb("love", "loves", "loved", "loved", Object::Animate),
    verb("help", "helps", "helped", "helped", Object::Animate),
    verb("follow", "follows", "followed", "followed", Object::Animate),
    verb("chase", "chases", "chased", "chased", Object::Animate),
    verb("visit", "visits", "visited", "visited", Object::Animate),
    verb("hear", "hears", "heard", "heard", Object::Animate),
];

/// Verbs for what people do to themselves and to others.
pub(super) static REFLEXIVE: &[Verb] = &[
    verb("wash", "washes", "washed", "washed", Object::Animate),
    verb("dress", "dresses", "dressed", "dressed", Object::Animate),
    verb("blame", "blames", "blamed", "blamed", Object::Animate),
    verb("praise", "praises", "praised", "praised", Object::Animate),
    verb("watch", "watches", "watched", "watched", Object::Animate),
    verb("trust", "trusts", "trusted", "trusted", Object::Animate),
    verb("admire", "admires", "admired", "admired", Object::Animate),
    verb("paint", "paints", "painted", "painted", Object::Animate),
];

/// Verbs with a clause: `that` and a sentence, or `what` and a sentence with a gap.
pub(super) static COGNITIVE: &[Verb] = &[
    act("know", "knows", "knew", "known"),
    act("remember", "remembers", "remembered", "remembered"),
    act("guess", "guesses", "guessed", "guessed"),
    act("learn", "learns", "learned", "learned"),
];

/// Verbs with `that` and a sentence only.
pub(super) static SPEECH: &[Verb] = &[
    act("say", "says", "said", "said"),
    act("think", "thinks", "thought", "thought"),
    act("believe", "believes", "believed", "believed"),
];

pub(super) static PREPOSITIONS: &[&str] = &["near", "behind", "beside"];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_form_belongs_to_one_lemma() {
        let mut owner: HashMap<&str, &str> = HashMap::new();
        let mut add = |form: &'static str, lemma: &'static str| {
            let before = owner.insert(form, lemma);
            assert!(before.is_none_or(|l| l == lemma), "{form}: {before:?} and {lemma}");
        };
        for list in [MEN, WOMEN, PEOPLE, ANIMALS, THINGS, FOODS, PLACES] {
            for n in list {
                add(n.singular, n.singular);
                add(n.plural, n.singular);
                assert_ne!(n.singular, n.plural);
            }
        }
        for list in [INTRANSITIVE, TRANSITIVE, REFLEXIVE, COGNITIVE, SPEECH] {
            for v in list {
                [v.base, v.third, v.past, v.participle].iter().for_each(|f| add(f, v.base));
                assert_ne!(v.base, v.past, "a question must differ from a statement");
            }
        }
        for list in [MASS, SIZES, COLORS, QUALITIES] {
            list.iter().for_each(|w| add(w, w));
        }
        NAMES.iter().flat_map(|l| l.iter()).for_each(|n| add(n.form, n.form));
        ["old", "new", "walk", "walked", "home"].iter().for_each(|w| assert!(!owner.contains_key(*w), "{w}"));
        assert!((300..500).contains(&owner.len()), "{} forms", owner.len());
    }

    #[test]
    fn irregular_verbs_are_many() {
        assert!(TRANSITIVE.iter().filter(|v| v.is_irregular()).count() >= 10);
    }
}
