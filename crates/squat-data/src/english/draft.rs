//! A sentence under construction, and the phrases that it is made of.

use super::lexicon::{Name, Noun, Number};
use squat_quant::random::mix;

/// One sentence in so many is kept out of every corpus.
const RESERVED_EVERY: u64 = 8;

/// The words so far, and a key that depends only on the content words, not on their order or form.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub text: String,
    key: u64,
}

/// A noun phrase with its words. It is copied into both sentences of a pair.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phrase {
    Name(&'static Name),
    /// Two names and `and`.
    Both(&'static Name, &'static Name),
    Common {
        determiner: &'static str,
        adjectives: [Option<&'static str>; 2],
        noun: &'static Noun,
        number: Number,
    },
}

impl Phrase {
    pub(super) fn number(&self) -> Number {
        match self {
            Self::Name(_) => Number::Singular,
            Self::Both(..) => Number::Plural,
            Self::Common { number, .. } => *number,
        }
    }
}

impl Draft {
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.key = 0;
    }

    /// A function word, which does not count as content.
    pub(super) fn word(&mut self, word: &str) -> &mut Self {
        if !self.text.is_empty() {
            // `an` before a vowel; the pronunciation of every word in the lexicon follows its spelling.
            if self.text == "a" || self.text.ends_with(" a") || self.text == "A" {
                let vowel = word.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']);
                if vowel {
                    self.text.push('n');
                }
            }
            self.text.push(' ');
        }
        self.text.push_str(word);
        self
    }

    /// Several function words.
    pub(super) fn words(&mut self, words: &str) -> &mut Self {
        words.split(' ').for_each(|w| {
            self.word(w);
        });
        self
    }

    /// A form of a content word.
    pub(super) fn content(&mut self, form: &str, lemma: &str) -> &mut Self {
        // FNV-1a of the lemma; the sum does not depend on the order.
        let hash = lemma
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
        self.key = self.key.wrapping_add(mix(hash));
        self.word(form)
    }

    pub(super) fn phrase(&mut self, phrase: &Phrase) -> &mut Self {
        match phrase {
            Phrase::Name(name) => self.content(name.form, name.form),
            Phrase::Both(one, two) => {
                self.content(one.form, one.form).word("and").content(two.form, two.form)
            }
            Phrase::Common { determiner, adjectives, noun, number } => {
                self.word(determiner);
                for adjective in adjectives.iter().flatten() {
                    self.content(adjective, adjective);
                }
                self.content(noun.form(*number), noun.singular)
            }
        }
    }

    /// A preposition and its phrase.
    pub(super) fn place(&mut self, (preposition, phrase): &(&'static str, Phrase)) -> &mut Self {
        self.word(preposition).phrase(phrase)
    }

    /// Ends the sentence and capitalises it.
    pub(super) fn end(&mut self, mark: char) {
        if let Some(first) = self.text.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        self.text.push(mark);
    }

    /// Whether sentences with these content words are reserved for held-out pairs. That does not depend on any seed, so
    /// the pairs of one seed are held out of the corpus of every other.
    pub(super) fn is_reserved(&self) -> bool {
        self.key != 0 && mix(self.key ^ 0x005E_ED0F_5E9A_7E57).is_multiple_of(RESERVED_EVERY)
    }
}
