//! Many requests over one model: continuous batching.
//!
//! Requests wait in a queue until a place is free, then run together. Each step feeds one block to [`Batch`]: a token of
//! every sequence that decodes, and, with the rows that are left, the next part of the prompts that are not read yet.
//! Sequences join and leave between steps. A request's tokens are those of [`crate::Engine::generate`] with the same
//! prompt and options, whatever else runs.
//!
//! ```no_run
//! # fn main() -> squat_engine::Result<()> {
//! use squat_engine::{Engine, Event, GenerateOptions, SchedulerOptions};
//! let engine = Engine::load("model", 2)?;
//! let mut scheduler = engine.scheduler(SchedulerOptions::default())?;
//! for prompt in [vec![1, 20, 300], vec![1]] {
//!     scheduler.submit(prompt, GenerateOptions::default())?;
//! }
//! while scheduler.step(|request, event| match event {
//!     Event::Token(token) => println!("{request:?}: {token}"),
//!     Event::Finished(reason) => println!("{request:?} ends: {reason:?}"),
//!     Event::Failed(error) => println!("{request:?} failed: {error}"),
//! }) {}
//! # Ok(()) }
//! ```

use crate::batch::Batch;
use crate::error::{EngineError, Result};
use crate::generate::{FinishReason, GenerateOptions, TokenChooser};
use crate::model::Model;
use crate::pool::Pool;
use crate::sequence::{Sequence, check_ids};
use crate::workspace::BatchEntry;
use squat_kernels::MAX_CONTEXT;
use std::collections::VecDeque;
use std::sync::Arc;

/// Limits of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Most sequences that run at once; further requests wait.
    pub max_sequences: usize,
    /// Most tokens of one step, at least `max_sequences`: large ones read prompts faster, small ones keep the time
    /// between the tokens of the other sequences short.
    pub max_step_tokens: usize,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self { max_sequences: 8, max_step_tokens: 64 }
    }
}

/// Names a request of one scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// An event of a request.
#[derive(Debug)]
pub enum Event {
    /// The next token of its text.
    Token(u32),
    /// Its text is complete; the request is gone.
    Finished(FinishReason),
    /// It cannot go on; the request is gone. The others are not affected.
    Failed(EngineError),
}

/// A request that waits.
struct Waiting {
    id: RequestId,
    prompt: Vec<u32>,
    max_tokens: usize,
    chooser: TokenChooser,
}

/// A request that runs.
struct Running {
    id: RequestId,
    sequence: Sequence,
    chooser: TokenChooser,
    /// Tokens to feed: the prompt, then the token chosen last.
    input: Vec<u32>,
    /// How many of them are fed.
    fed: usize,
    /// How many more the current step feeds.
    share: usize,
}

/// Runs requests together; see the [module](self).
pub struct Scheduler {
    model: Arc<Model>,
    batch: Batch,
    options: SchedulerOptions,
    waiting: VecDeque<Waiting>,
    /// In the order of admission.
    running: Vec<Running>,
    next_id: u64,
}

impl Scheduler {
    pub(crate) fn new(model: Arc<Model>, pool: Arc<Pool>, options: SchedulerOptions) -> Result<Self> {
        let SchedulerOptions { max_sequences, max_step_tokens } = options;
        if max_sequences == 0 || max_sequences > max_step_tokens {
            return Err(EngineError::Option {
                option: "max_sequences",
                expected: format!("1 to max_step_tokens = {max_step_tokens}"),
                got: max_sequences.to_string(),
            });
        }
        let batch = Batch::new(model.clone(), pool, max_step_tokens)?;
        Ok(Self { model, batch, options, waiting: VecDeque::new(), running: Vec::new(), next_id: 0 })
    }

    /// Queues a request. `prompt` begins with BOS.
    ///
    /// # Errors
    /// An empty prompt, one longer than the model takes, an id outside the vocabulary, options out of range.
    pub fn submit(&mut self, prompt: Vec<u32>, options: GenerateOptions) -> Result<RequestId> {
        if prompt.is_empty() {
            return Err(EngineError::Empty { what: "the prompt", expected: "the BOS token" });
        }
        check_ids(&prompt, self.model.spec.vocab_size)?;
        let (asked, capacity) = (prompt.len(), self.limit());
        if asked > capacity {
            let max_positions = self.model.spec.max_position_embeddings;
            return Err(EngineError::TooLong { asked, capacity, max_positions });
        }
        let max_tokens = options.max_tokens;
        let chooser = TokenChooser::new(options)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Waiting { id, prompt, max_tokens, chooser });
        Ok(id)
    }

    /// Forgets a request; no further event comes of it. Whether it was waiting or running.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let before = self.waiting.len() + self.running.len();
        self.waiting.retain(|waiting| waiting.id != id);
        self.running.retain(|running| running.id != id);
        self.waiting.len() + self.running.len() < before
    }

    /// Requests that wait for a place.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests that run.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Bytes of keys and values of all running requests.
    pub fn cache_bytes(&self) -> usize {
        self.running.iter().map(|running| running.sequence.cache_bytes()).sum()
    }

    /// Feeds one block and reports the events, in the order of admission; whether requests are left.
    pub fn step(&mut self, mut on_event: impl FnMut(RequestId, Event)) -> bool {
        self.admit(&mut on_event);
        self.share_out();
        let mut entries: Vec<BatchEntry<'_>> = self.running.iter_mut().filter_map(Running::entry).collect();
        let mut failures = Vec::new();
        if !entries.is_empty() && self.batch.run(&mut entries).is_err() {
            // Nothing was fed. Fed one by one, only the faulty ones fail; the results of the others are the same.
            drop(entries);
            for running in &mut self.running {
                if let Some(entry) = running.entry()
                    && let Err(error) = self.batch.run(&mut [entry])
                {
                    failures.push((running.id, error));
                }
            }
        }
        let mut failures = failures.into_iter().peekable();
        self.running.retain_mut(|running| {
            let id = running.id;
            let end = match failures.next_if(|(failed, _)| *failed == id) {
                Some((_, error)) => Some(Event::Failed(error)),
                None => running.advance(|token| on_event(id, Event::Token(token))).map(Event::Finished),
            };
            let goes_on = end.is_none();
            end.into_iter().for_each(|event| on_event(id, event));
            goes_on
        });
        !(self.running.is_empty() && self.waiting.is_empty())
    }

    /// Most tokens of a sequence.
    fn limit(&self) -> usize {
        self.model.spec.max_position_embeddings.min(MAX_CONTEXT)
    }

    /// Takes requests from the queue while there are places.
    fn admit(&mut self, on_event: &mut impl FnMut(RequestId, Event)) {
        while self.running.len() < self.options.max_sequences
            && let Some(Waiting { id, prompt, max_tokens, chooser }) = self.waiting.pop_front()
        {
            let capacity = prompt.len().saturating_add(max_tokens).min(self.limit());
            match Sequence::new(self.model.clone(), Some(capacity)) {
                Ok(sequence) => {
                    self.running.push(Running { id, sequence, chooser, input: prompt, fed: 0, share: 0 });
                }
                Err(error) => on_event(id, Event::Failed(error)),
            }
        }
    }

    /// Decides how many tokens each sequence is fed: one where one is left, then prompts as far as rows reach.
    fn share_out(&mut self) {
        let mut rows = self.options.max_step_tokens;
        for running in &mut self.running {
            running.share = usize::from(running.left() == 1);
            rows -= running.share;
        }
        for running in self.running.iter_mut().filter(|running| running.share == 0) {
            running.share = running.left().min(rows);
            rows -= running.share;
        }
    }
}

impl Running {
    /// Tokens that are not fed yet.
    fn left(&self) -> usize {
        self.input.len() - self.fed
    }

    /// The tokens that the current step feeds, if any.
    fn entry(&mut self) -> Option<BatchEntry<'_>> {
        let tokens = &self.input[self.fed..self.fed + self.share];
        let ends = self.fed + self.share == self.input.len();
        (self.share > 0).then(|| {
            let entry = BatchEntry::of(&mut self.sequence, tokens);
            if ends { entry } else { entry.without_logits() }
        })
    }

    /// Counts the tokens that the step has fed and, at the end of the input, chooses the next one. Returns why the text ends,
    /// if it does.
    fn advance(&mut self, on_token: impl FnOnce(u32)) -> Option<FinishReason> {
        self.fed += self.share;
        if self.left() > 0 {
            return None;
        }
        match self.chooser.choose(self.sequence.logits()) {
            Err(reason) => Some(reason),
            Ok(token) => {
                on_token(token);
                self.input.clear();
                self.input.push(token);
                self.fed = 0;
                self.chooser.ended(self.sequence.position() == self.sequence.capacity())
            }
        }
    }
}
