//! The activation points of a transformer: where activations can be quantized (METHOD.md section 3).

/// A named activation point. Every layer has all of them, except [`ActPoint::HeadIn`], which occurs once, after the last
/// layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ActPoint {
    /// Input of the query, key and value projections.
    AttnIn,
    /// Queries after RoPE, per head.
    Query,
    /// Keys after RoPE, per head; cached as integers.
    Key,
    /// Values, per head; cached as integers.
    Value,
    /// Attention probabilities after the softmax: unsigned, 8 bits.
    AttnProbs,
    /// Input of the output projection.
    AttnOut,
    /// Input of the gate and up projections.
    MlpIn,
    /// Input of the down projection.
    MlpMid,
    /// Input of the language-model head: always 8 bits.
    HeadIn,
}

impl ActPoint {
    /// Every point, in the order of the forward pass.
    pub const ALL: [Self; 9] = [
        Self::AttnIn,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttnProbs,
        Self::AttnOut,
        Self::MlpIn,
        Self::MlpMid,
        Self::HeadIn,
    ];

    /// Name in recipes and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AttnIn => "attn_in",
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::AttnProbs => "attn_probs",
            Self::AttnOut => "attn_out",
            Self::MlpIn => "mlp_in",
            Self::MlpMid => "mlp_mid",
            Self::HeadIn => "head_in",
        }
    }

    /// The point with a given name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|point| point.name() == name)
    }

    /// Position in [`ActPoint::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indices() {
        for (index, point) in ActPoint::ALL.into_iter().enumerate() {
            assert_eq!(ActPoint::from_name(point.name()), Some(point));
            assert_eq!(point.index(), index);
        }
        assert_eq!(ActPoint::from_name("attn"), None);
    }
}
