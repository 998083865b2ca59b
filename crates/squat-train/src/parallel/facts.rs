//! The results of a micro-batch other than its gradients, which every process needs.

use super::{Group, ParallelError};
use crate::step::StepLoss;

/// Losses, token-policy scores and bits of one micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Loss by term.
    pub loss: StepLoss,
    /// Share of (token, layer) pairs at 8 bits.
    pub eight_bit_share: f64,
    /// Token-policy scores of each layer.
    pub scores: Vec<Vec<f32>>,
}

impl Facts {
    fn encode(&self, bytes: &mut Vec<u8>) {
        let mut number = |x: f64| bytes.extend(x.to_bits().to_le_bytes());
        let loss = &self.loss;
        for x in [loss.total, loss.cross_entropy, self.eight_bit_share] {
            number(x);
        }
        for x in [loss.divergence, loss.entropy, loss.alignment] {
            number(f64::from(u8::from(x.is_some())));
            number(x.unwrap_or(0.0));
        }
        bytes.extend((self.scores.len() as u64).to_le_bytes());
        for scores in &self.scores {
            bytes.extend((scores.len() as u64).to_le_bytes());
            super::encode(scores, bytes);
        }
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let mut word = || -> Option<[u8; 8]> {
            let (first, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(*first)
        };
        let mut number = || word().map(|b| f64::from_bits(u64::from_le_bytes(b)));
        let [total, cross_entropy, eight_bit_share] = [number()?, number()?, number()?];
        let mut optional = || -> Option<Option<f64>> { Some((number()? != 0.0).then_some(number()?)) };
        let [divergence, entropy, alignment] = [optional()?, optional()?, optional()?];
        let layers = u64::from_le_bytes(word()?);
        let mut scores = Vec::new();
        for _ in 0..layers {
            let (length, rest) = bytes.split_first_chunk()?;
            let length = usize::try_from(u64::from_le_bytes(*length)).ok()?.checked_mul(4)?;
            let (values, rest) = rest.split_at_checked(length)?;
            *bytes = rest;
            scores
                .push(values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
        }
        let loss = StepLoss { total, cross_entropy, divergence, entropy, alignment };
        Some(Self { loss, eight_bit_share, scores })
    }
}

/// The facts of all micro-batches of a step in their order, from those of this process.
///
/// # Errors
/// A process that is gone or failed.
pub fn gather(group: &Group, mine: Vec<Facts>) -> Result<Vec<Facts>, ParallelError> {
    if group.world() == 1 {
        return Ok(mine);
    }
    let mut bytes = Vec::new();
    mine.iter().for_each(|facts| facts.encode(&mut bytes));
    let mut all = Vec::new();
    for (rank, bytes) in group.gather(&bytes)?.iter().enumerate() {
        let disagree = ParallelError::Disagree { what: "facts about a step", rank, own: group.rank() };
        all.extend(read_all(bytes).ok_or(disagree)?);
    }
    Ok(all)
}

/// The facts in the message of a process; `None` if it is not one.
pub(super) fn read_all(mut bytes: &[u8]) -> Option<Vec<Facts>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        all.push(Facts::decode(&mut bytes)?);
    }
    Some(all)
}

/// A message as [`gather`] sends it.
pub(super) fn seed() -> Vec<u8> {
    let facts = Facts { scores: vec![vec![0.5; 3], vec![]], ..Facts::default() };
    let mut bytes = Vec::new();
    facts.encode(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_read_back() {
        let loss =
            StepLoss { total: 1.5, cross_entropy: f64::NAN, entropy: Some(-0.25), ..Default::default() };
        let facts = [
            Facts { loss, eight_bit_share: 0.5, scores: vec![vec![], vec![1.0, f32::MIN]] },
            Facts::default(),
        ];
        let mut bytes = Vec::new();
        facts.iter().for_each(|f| f.encode(&mut bytes));
        let mut rest = bytes.as_slice();
        let found = [Facts::decode(&mut rest).unwrap(), Facts::decode(&mut rest).unwrap()];
        assert!(rest.is_empty());
        assert!(found[0].loss.cross_entropy.is_nan() && found[0].loss.divergence.is_none());
        assert_eq!(found[0].loss.entropy, Some(-0.25));
        assert_eq!((&found[0].scores, &found[1]), (&facts[0].scores, &facts[1]));
        for end in 0..bytes.len() / 2 {
            assert_eq!(Facts::decode(&mut &bytes[..end]), None);
        }
    }
}
