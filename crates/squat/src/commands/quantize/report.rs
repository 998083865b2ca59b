//! What `squat quantize` says at its end: a table, the card of the model, and what more time would bring.

use crate::args::Quantize;
use crate::bench::measure::{Test, alternate};
use crate::fidelity::Fidelity;
use anyhow::Result;
use serde_json::{Value, json};
use squat_engine::Engine;
use squat_eval::table::Table;
use std::path::Path;

/// Tokens of the prompt, and tokens generated, that speed is measured with.
const TOKENS: (usize, usize) = (128, 16);

/// Times that each is measured, beside a first one that warms up.
const REPEATS: usize = 3;

/// Tokens per second of the original, in f32, and of the quantized model, alternating in one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Of a prompt.
    pub prompt: [f64; 2],
    /// Of generation.
    pub generation: [f64; 2],
}

impl Speed {
    /// Medians of a few runs.
    pub fn measure(original: &Engine, quantized: &Engine) -> Result<Self> {
        let room = original.spec().max_position_embeddings;
        let (prompt, generation) = (TOKENS.0.min(room), TOKENS.1.min(room));
        let engines = [original, quantized].map(|engine| engine.with_threads(engine.threads()));
        let [a, b] = engines;
        let found = alternate(&[a?, b?], &Test::list(prompt, generation, 0, &[1]), REPEATS)?;
        let medians = |test: usize| [found[0][test].median(), found[1][test].median()];
        Ok(Self { prompt: medians(0), generation: medians(1) })
    }
}

/// Training after the first codes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course {
    /// Tokens trained on.
    pub tokens: u64,
    /// Steps, and the held-out cross-entropy after each of some of them, from step 0 on.
    pub held_out: Vec<(u64, f64)>,
}

impl Course {
    /// About what twice the time would bring: a factor of the perplexity, from the gain since half of the steps.
    fn doubled(&self) -> Option<f64> {
        let &(steps, last) = self.held_out.last()?;
        let half = self.held_out.iter().rev().find(|(step, _)| 2 * step <= steps)?;
        (steps > 0 && half.1 > last).then(|| (last - half.1).exp())
    }
}

/// Everything that is told at the end.
pub struct Report<'a> {
    pub args: &'a Quantize,
    /// The original.
    pub model: &'a Path,
    /// Transforms of the plan in words.
    pub transforms: String,
    pub fidelity: Fidelity,
    pub speed: Speed,
    /// Of the weights of original and quantized model.
    pub bytes: [u64; 2],
    /// Tokens.
    pub calibrated_on: usize,
    /// Tokens.
    pub trained_on: u64,
    pub seconds: f64,
}

impl Report<'_> {
    /// The table in Markdown.
    pub fn table(&self) -> String {
        let Speed { prompt, generation } = self.speed;
        let speeds = [("prompt, tokens/s", prompt), ("generation, tokens/s", generation)];
        let rows = speeds.map(|(name, [original, quantized])| (name, rate(original), rate(quantized)));
        self.in_columns(self.quality().into_iter().chain(rows))
    }

    /// The rows that are the same on every machine.
    fn quality(&self) -> Vec<(&'static str, String, String)> {
        let fidelity = &self.fidelity;
        let [before, after] = fidelity.perplexities();
        vec![
            ("perplexity", format!("{before:.2}"), format!("{after:.2}")),
            ("over the original", "1".to_owned(), format!("{:.3}", fidelity.ratio())),
            ("equal next tokens", "100 %".to_owned(), format!("{:.1} %", 100.0 * fidelity.agreement())),
            ("KL divergence, nats", "0".to_owned(), format!("{:.4}", fidelity.mean_divergence())),
            ("bytes", self.bytes[0].to_string(), self.bytes[1].to_string()),
        ]
    }

    fn in_columns(&self, rows: impl IntoIterator<Item = (&'static str, String, String)>) -> String {
        let mut table = Table::new(["", "original", &self.args.plan]);
        rows.into_iter()
            .for_each(|(name, original, quantized)| table.push([name.to_owned(), original, quantized]));
        table.to_markdown()
    }

    /// All figures, by name.
    pub fn to_json(&self) -> Value {
        let mut all = self.fidelity.to_json();
        all["plan"] = json!(self.args.plan);
        all["bytes_before"] = json!(self.bytes[0]);
        all["bytes_after"] = json!(self.bytes[1]);
        all["prompt_tokens_per_second"] = json!(self.speed.prompt);
        all["generation_tokens_per_second"] = json!(self.speed.generation);
        all["calibration_tokens"] = json!(self.calibrated_on);
        all["training_tokens"] = json!(self.trained_on);
        all["seconds"] = json!(self.seconds);
        all
    }

    /// One line under the table.
    pub fn summary(&self) -> String {
        let (tokens, seconds) = (self.fidelity.tokens, self.seconds);
        let out = self.args.out.display();
        format!("{tokens} tokens measured, the original in f32; {seconds:.0} s in all: {out}")
    }

    /// What the next larger budget would bring.
    pub fn next(&self, course: Option<&Course>) -> String {
        let ratio = self.fidelity.ratio();
        let Some(minutes) = self.args.minutes.filter(|_| course.is_some_and(|course| course.tokens > 0))
        else {
            return "next: --minutes 30 also trains on what the original says, --minutes 480 for as long as a night".to_owned();
        };
        let more = 2.0 * minutes;
        match course.and_then(Course::doubled) {
            Some(factor) => format!(
                "next: --minutes {more} would bring about {:.3} over the original, if training goes on as in its second half",
                (ratio * factor).max(1.0)
            ),
            None => format!(
                "next: --minutes {more}; the second half of this training brought nothing on held-out text"
            ),
        }
    }

    /// The card: what the model is, how near it is to its original, how it was made. Without speeds: the same
    /// command writes the same bytes.
    pub fn card(&self) -> String {
        let Self { args, calibrated_on, trained_on, transforms, .. } = self;
        let name = |path: &Path| {
            path.file_name().map_or("model".to_owned(), |name| name.to_string_lossy().into_owned())
        };
        let (model, plan) = (name(self.model), &args.plan);
        let text = match &args.data {
            Some(data) => format!("text of `{}`", name(data)),
            None => "text that the original wrote itself".to_owned(),
        };
        let training = match trained_on {
            0 => "It was not trained after that.".to_owned(),
            tokens => format!(
                "Then it was trained for {tokens} tokens to say what the original says (self-distillation)."
            ),
        };
        let measured = match (&args.held_out, &args.data) {
            (Some(held_out), _) => format!("of `{}`, which it has not seen", name(held_out)),
            (None, Some(_)) => "of the end of that text, which it has not seen".to_owned(),
            (None, None) => "of other text that the original wrote, which it has not seen".to_owned(),
        };
        format!(
            "---\ntags: [squat, quantized, {plan}]\n---\n\n# {model}, {plan}\n\n{model}, quantized by `squat quantize` {version}: \
             weights and activations are integers (plan `{plan}`), by quantization-aware methods on {text}. \
             Codes and scales were found on {calibrated_on} tokens. {training}\n\n{table}\n\
             Measured on {tokens} tokens {measured}; the original in f32.\n\n\
             * Methods: {methods}\n* Transforms: {transforms}\n* Seed: {seed}\n\n\
             ```sh\nsquat generate FOLDER --prompt \"Once upon a time\"\nsquat inspect FOLDER --verify\n```\n",
            version = env!("CARGO_PKG_VERSION"),
            table = self.in_columns(self.quality()),
            tokens = self.fidelity.tokens,
            methods = args.methods,
            seed = args.seed,
        )
    }
}

fn rate(tokens_per_second: f64) -> String {
    format!("{tokens_per_second:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_time_repeats_the_gain_of_the_second_half() {
        let course = |held_out: &[(u64, f64)]| Course { tokens: 1, held_out: held_out.to_vec() };
        let factor = course(&[(0, 3.0), (5, 2.5), (7, 2.4), (10, 2.25)]).doubled().unwrap();
        assert!((factor - (-0.25f64).exp()).abs() < 1e-12, "{factor}");
        assert_eq!(course(&[(0, 3.0), (5, 2.5), (10, 2.5)]).doubled(), None);
        assert_eq!(course(&[(0, 3.0)]).doubled(), None);
        assert_eq!(course(&[]).doubled(), None);
    }
}
