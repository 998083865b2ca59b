//! The unit of every packed layout: 64 bytes, 16 lanes of four.

/// Output channels of a panel, and 32-bit lanes of a [`Block`].
pub const PANEL: usize = 16;

/// 64 bytes on a cache line of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Block(pub [u8; 64]);

impl Block {
    /// The block with these 32-bit lanes.
    #[inline(always)]
    pub(crate) fn from_lanes(lanes: [u32; PANEL]) -> Self {
        let mut block = Self([0; 64]);
        for (quad, lane) in block.0.as_chunks_mut().0.iter_mut().zip(lanes) {
            *quad = lane.to_le_bytes();
        }
        block
    }
}
