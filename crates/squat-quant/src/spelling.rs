//! The known name nearest to a misspelled one, for hints in error messages.

use alloc::vec::Vec;

/// Least similarity of a name that is worth a hint.
const NEAR: f64 = 0.5;

/// Shortest beginning of a name that counts as near to the whole.
const PREFIX: usize = 3;

/// Similarity of two names, from 0 to 1, case ignored: `1 - d / n`, where `d` is the optimal string alignment distance
/// (characters inserted, deleted, replaced, or swapped with a neighbour) and `n` the length of the longer name.
pub fn similarity(a: &str, b: &str) -> f64 {
    let (a, b) = (lowercase(a), lowercase(b));
    match a.len().max(b.len()) {
        0 => 1.0,
        n => 1.0 - distance(&a, &b) as f64 / n as f64,
    }
}

/// The name in `known` that is most similar to `got`, the first of equals; none if all of them are far off.
///
/// A name is near if its [`similarity`] is at least one half, or if `got` is its beginning (`blimp` for
/// `blimp.tar.gz`).
pub fn nearest<'a>(got: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best = None;
    for name in known {
        let score = match name.starts_with(got) && got.len() >= PREFIX {
            true => similarity(got, name).max(NEAR),
            false => similarity(got, name),
        };
        if score >= NEAR && best.is_none_or(|(_, highest)| score > highest) {
            best = Some((name, score));
        }
    }
    best.map(|(name, _)| name)
}

fn lowercase(name: &str) -> Vec<char> {
    name.to_lowercase().chars().collect()
}

/// Optimal string alignment distance.
fn distance(a: &[char], b: &[char]) -> usize {
    // Rows i - 2, i - 1 and i of the table of distances of beginnings.
    let (mut before, mut last): (Vec<usize>, Vec<usize>) = (Vec::new(), (0..=b.len()).collect());
    for i in 0..a.len() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for j in 0..b.len() {
            let replaced = last[j] + usize::from(a[i] != b[j]);
            let mut least = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = core::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(a: &str, b: &str) -> usize {
        distance(&lowercase(a), &lowercase(b))
    }

    #[test]
    fn distances_are_the_known_ones() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("cuda", "cdua"), 1);
        assert_eq!(edits("ca", "abc"), 3);
        assert_eq!((edits("", "abc"), edits("abc", ""), edits("", "")), (3, 3, 0));
        assert_eq!(edits("É", "é"), 0);
        assert_eq!(similarity("", ""), 1.0);
        assert_eq!(similarity("avx3", "AVX2"), 0.75);
    }

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["blimp", "supplement", "pairs", "perplexity"];
        for (got, name) in
            [("blimb", "blimp"), ("pair", "pairs"), ("PAIRS", "pairs"), ("perplexty", "perplexity")]
        {
            assert_eq!(nearest(got, known), Some(name));
        }
        assert_eq!(nearest("glue", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("x", []), None);
        assert_eq!(nearest("w4a9", ["w8a8", "w4a8", "w4a4"]), Some("w4a8"));
        assert_eq!(nearest("childes", ["gutenberg.train.gz", "childes.train.gz"]), Some("childes.train.gz"));
    }
}
