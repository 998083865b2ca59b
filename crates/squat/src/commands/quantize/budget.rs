//! How many tokens fit into the minutes.

use super::text::window_of;
use crate::args::Quantize;
use anyhow::{Result, bail};
use squat_engine::Engine;
use squat_files::read::{self, Limit};
use squat_files::write::OutputFolder;
use std::time::{Duration, Instant};

/// Tokens to calibrate on without a limit of time.
const CALIBRATION: usize = 16_384;

/// Most tokens to calibrate on that a limit of time chooses: more bring less than training does.
const MOST_CALIBRATION: usize = 32_768;

/// Tokens to measure on.
const MEASURED: usize = 8_192;

// Costs in passes of the original over a token, in f32 (docs/LOG.md): found on SmolLM2-135M.

/// Calibrating: both models' passes and the sums of products.
const CALIBRATING: f64 = 3.5;
/// Measuring: a pass of each model, the divergence, and the speed of both.
const MEASURING: f64 = 2.5;
/// A token that the model writes.
const WRITING: f64 = 2.0;
/// A token of a training step.
const TRAINING: f64 = 3.7;
/// Finding the codes, for each of the hidden values: the weights are few for each, and the products with them grow with its square.
const SOLVING: f64 = 19.0;

/// Share of the time for measuring.
const MEASURED_SHARE: f64 = 0.2;
/// Share of the time for the first codes, where the time is not short.
const CODES_SHARE: f64 = 0.33;
/// Minutes up to which a time is short: all that is left goes to the first codes.
const SHORT: f64 = 5.0;
/// Share of the time that is kept for what is not foreseen.
const MARGIN: f64 = 0.06;
/// Seconds that are kept for packing.
const PACKING: f64 = 5.0;
/// Fewest steps that training is worth its preparations for.
const LEAST_STEPS: f64 = 6.0;

/// Tokens, and the time that is kept for the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// To calibrate on.
    pub tokens: usize,
    /// To measure on.
    pub eval_tokens: usize,
    /// For measuring and packing.
    pub reserve: Duration,
    /// Time below which training does not begin.
    pub least_training: Duration,
}

/// Name of the file of the working folder that keeps what was chosen, so that an interrupted command goes on with the same text.
const FILE: &str = "budget";

impl Budget {
    /// What was asked for, and where that is left open, what fits into the minutes.
    ///
    /// # Errors
    /// A time that is too short for anything.
    pub fn choose(args: &Quantize, original: &Engine, work: &OutputFolder, began: Instant) -> Result<Self> {
        let Some(minutes) = args.minutes else {
            let (tokens, eval_tokens) =
                (args.tokens.unwrap_or(CALIBRATION), args.eval_tokens.unwrap_or(MEASURED));
            let (reserve, least_training) = (Duration::ZERO, Duration::ZERO);
            return Ok(Self { tokens, eval_tokens, reserve, least_training });
        };
        let asked = format!("{minutes} {:?} {:?} {}", args.tokens, args.eval_tokens, args.data.is_some());
        let kept = read::text(&work.path().join(FILE), Limit::Config).ok();
        if let Some(known) = kept.as_deref().and_then(|text| Self::parse(text, &asked)) {
            return Ok(known);
        }
        let pass = seconds_per_token(original)?;
        // Text is still to be read, which takes about as long as reading the model did.
        let gone = 2.0 * began.elapsed().as_secs_f64();
        let chosen = Self::fit(args, minutes, gone, pass, original.spec().hidden_size)?;
        let Self { tokens, eval_tokens, reserve, least_training } = chosen;
        let (reserve, least) = (reserve.as_secs_f64(), least_training.as_secs_f64());
        work.write(FILE, format!("{asked}\n{tokens} {eval_tokens} {reserve} {least}\n").as_bytes())?;
        Ok(chosen)
    }

    fn parse(text: &str, asked: &str) -> Option<Self> {
        let (first, rest) = text.split_once('\n')?;
        let numbers: Vec<f64> = rest.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let &[tokens, eval_tokens, reserve, least] = numbers.as_slice() else { return None };
        let time = |seconds| Duration::try_from_secs_f64(seconds).ok();
        (first == asked).then_some(Self {
            tokens: tokens as usize,
            eval_tokens: eval_tokens as usize,
            reserve: time(reserve)?,
            least_training: time(least)?,
        })
    }

    /// `pass` is the time of the original for a token, `gone` what is over before calibration begins, in seconds.
    fn fit(args: &Quantize, minutes: f64, gone: f64, pass: f64, hidden: usize) -> Result<Self> {
        let seconds = 60.0 * minutes;
        let written = if args.data.is_some() { 0.0 } else { WRITING };
        let measuring = pass * (MEASURING + if args.held_out.is_none() { written } else { 0.0 });
        let eval_tokens = args
            .eval_tokens
            .unwrap_or_else(|| ((MEASURED_SHARE * seconds / measuring) as usize).clamp(1, MEASURED));
        let reserve = MARGIN * seconds + PACKING.min(0.1 * seconds) + pass * MEASURING * eval_tokens as f64;
        let all =
            (seconds - gone - reserve).min(if minutes > SHORT { CODES_SHARE * seconds } else { seconds });
        let solving = pass * SOLVING * hidden as f64;
        let tokens = match args.tokens {
            Some(tokens) => tokens,
            None if all <= solving => bail!(
                "{minutes} minutes are too short to find codes for this model on this machine; give at least {:.0}, or \
                 --tokens, to calibrate on so many whatever it takes",
                (1.5 * (solving + gone) / 60.0 + 1.0).ceil()
            ),
            None => {
                (((all - solving) / (pass * (CALIBRATING + written))) as usize).clamp(1, MOST_CALIBRATION)
            }
        };
        let time = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let step = squat_train::tune::Settings::default().step_tokens as f64 * pass * TRAINING;
        Ok(Self { tokens, eval_tokens, reserve: time(reserve), least_training: time(LEAST_STEPS * step) })
    }
}

/// The better of two passes over a window.
fn seconds_per_token(engine: &Engine) -> Result<f64> {
    let length = window_of(engine.spec());
    let ids = crate::bench::measure::token_ids(length, engine.spec().vocab_size);
    let mut best = f64::MAX;
    for _ in 0..2 {
        let start = Instant::now();
        engine.session()?.prefill(&ids)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best / length as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(words: &[&str]) -> Quantize {
        let all = ["squat", "quantize", "model", "--out", "x"].iter().chain(words);
        match crate::args::Cli::parse_from(all).command {
            crate::args::Command::Quantize(args) => args,
            _ => unreachable!(),
        }
    }

    #[test]
    fn tokens_fit_into_the_minutes() {
        let pass = 0.0027;
        let fit = |words: &[&str], minutes| Budget::fit(&args(words), minutes, 10.0, pass, 576);
        let short = fit(&["--data", "text", "--held-out", "other"], 2.0).unwrap();
        // Everything together stays below the time.
        let cost =
            |b: &Budget| pass * (CALIBRATING * b.tokens as f64 + SOLVING * 576.0) + b.reserve.as_secs_f64();
        assert!(short.tokens > 500 && cost(&short) < 120.0, "{short:?}");
        let long = fit(&["--data", "text"], 30.0).unwrap();
        assert_eq!((long.tokens, long.eval_tokens), (MOST_CALIBRATION, MEASURED));
        assert!(cost(&long) < 0.5 * 1800.0);
        // Text that the model writes costs time too.
        assert!(fit(&[], 2.0).unwrap().tokens < short.tokens);
        // What was asked for is done.
        let asked = fit(&["--tokens", "5", "--eval-tokens", "7"], 2.0).unwrap();
        assert_eq!((asked.tokens, asked.eval_tokens), (5, 7));
        let error = fit(&[], 0.2).unwrap_err().to_string();
        assert!(error.contains("too short") && error.contains("--tokens"), "{error}");
    }

    #[test]
    fn a_budget_is_kept_for_the_same_wish() {
        let (reserve, least_training) = (Duration::from_millis(1500), Duration::from_secs(2));
        let budget = Budget { tokens: 7, eval_tokens: 9, reserve, least_training };
        assert_eq!(Budget::parse("2 None\n7 9 1.5 2\n", "2 None"), Some(budget));
        assert_eq!(Budget::parse("2 None\n7 9 1.5 2\n", "3 None"), None);
        for damaged in
            ["", "2 None", "2 None\n7 9\n", "2 None\n7 9 1.5\n", "2 None\n7 9 -1 2\n", "2 None\n7 9 x 2\n"]
        {
            assert_eq!(Budget::parse(damaged, "2 None"), None, "{damaged:?}");
        }
    }
}
