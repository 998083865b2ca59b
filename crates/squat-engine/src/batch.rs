//! Several sequences at once: each weight that is read serves all of them.
//!
//! A decoded token reads every weight for a single product; with `n` sequences in a batch one read serves `n` of them.
//! Sessions may be at different positions, and each call may feed different ones. A session's results are bit-identical
//! whatever else is in the batch.

use crate::error::{EngineError, Result};
use crate::model::Model;
use crate::pool::Pool;
use crate::session::Session;
use crate::workspace::{BatchEntry, Workspace};
use std::sync::Arc;

/// Buffers for feeding several sessions together.
///
/// ```no_run
/// # fn main() -> squat_engine::Result<()> {
/// # use squat_engine::{Engine, BatchEntry};
/// let engine = Engine::load("model", 2)?;
/// let (mut a, mut b) = (engine.session()?, engine.session()?);
/// let mut batch = engine.batch(16)?;
/// // Prompts and single tokens can be mixed freely.
/// batch.run(&mut [BatchEntry::new(&mut a, &[1, 20, 300]), BatchEntry::new(&mut b, &[1])])?;
/// assert_eq!(a.logits().len(), engine.spec().vocab_size);
/// # Ok(()) }
/// ```
pub struct Batch {
    model: Arc<Model>,
    pool: Arc<Pool>,
    workspace: Workspace,
}

impl<'a> BatchEntry<'a> {
    /// Tokens to feed after those that `session` holds.
    pub fn new(session: &'a mut Session, tokens: &'a [u32]) -> Self {
        Self::of(&mut session.sequence, tokens)
    }
}

impl Batch {
    pub(crate) fn new(model: Arc<Model>, pool: Arc<Pool>, rows: usize) -> Result<Self> {
        if rows == 0 || rows > 4096 {
            return Err(EngineError::Option {
                option: "rows of a batch",
                expected: "1 to 4096 tokens".to_owned(),
                got: rows.to_string(),
            });
        }
        let positions = model.spec.max_position_embeddings;
        let workspace = Workspace::new(&model, pool.threads(), rows.div_ceil(pool.threads()), positions);
        Ok(Self { model, pool, workspace })
    }

    /// Feeds each session its tokens, and leaves in each the logits after its last token ([`crate::Session::logits`]).
    ///
    /// More tokens than the batch has rows are fed in several blocks; the result is the same. Decoding (one token for
    /// each session) allocates nothing once the buffers have their size, except where a cache grows.
    ///
    /// # Errors
    /// A session of another engine's model; an entry without tokens, an id outside the vocabulary, more tokens than
    /// fit: nothing is fed then. Logits that are not finite: all sessions hold what they held before.
    pub fn run(&mut self, entries: &mut [BatchEntry<'_>]) -> Result<()> {
        for entry in entries.iter() {
            if !Arc::ptr_eq(entry.sequence.model(), &self.model) {
                return Err(EngineError::OtherModel { what: "a session of the batch" });
            }
            entry.sequence.check(entry.tokens)?;
        }
        self.workspace.run(&self.model, &self.pool, entries, None)
    }

    /// Bytes of its buffers.
    pub fn scratch_bytes(&self) -> usize {
        self.workspace.bytes()
    }
}
