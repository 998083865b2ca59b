//! Progress of a run: bars at a terminal, plain lines elsewhere.

use crate::printer;
use indicatif::{ProgressBar, ProgressStyle};
use squat_train::run::RunEvent;
use squat_train::stage::Event;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Seconds between lines.
const QUIET: Duration = Duration::from_secs(10);

/// Shows the events of a run.
pub struct Progress {
    bar: Option<ProgressBar>,
    terminal: bool,
    last: Instant,
    started: Instant,
    first_step: u64,
    stage: String,
}

impl Progress {
    /// Bars if stderr is a terminal, lines otherwise.
    pub fn new() -> Self {
        let now = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        Self { bar: None, terminal, last: now, started: now, first_step: 0, stage: String::new() }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(printer::message(text)),
            None => printer::note(text),
        }
    }

    /// Shows one event.
    pub fn event(&mut self, event: &RunEvent) {
        match event {
            RunEvent::Note(text) => self.say(text),
            RunEvent::Stage { name, index, count, skipped } => {
                self.stage.clone_from(name);
                let what = if *skipped { ", finished before" } else { "" };
                self.say(&format!("stage {index}/{count} {name}{what}"));
            }
            RunEvent::Training(event) => self.training(event),
        }
    }

    fn training(&mut self, event: &Event) {
        match event {
            Event::Start { step, steps, parameters } => {
                self.started = Instant::now();
                self.first_step = *step;
                let from = if *step > 0 { format!(", from step {step}") } else { String::new() };
                self.say(&format!(
                    "{}: {steps} steps, {:.2}M parameters{from}",
                    self.stage,
                    *parameters as f64 / 1e6
                ));
                if self.terminal {
                    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}");
                    let bar = printer::bar(*steps);
                    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                    bar.set_position(*step);
                    self.bar = Some(bar);
                }
            }
            Event::Step { step, steps, loss, tokens_per_second, .. } => {
                let done = (step - self.first_step).max(1) as f64;
                let left = self.started.elapsed().as_secs_f64() / done * (steps - step) as f64;
                let terms: Vec<String> =
                    loss.terms().map(|(name, value)| format!("{name} {value:.3}")).collect();
                let text =
                    format!("{}, {tokens_per_second:.0} tokens/s, {} left", terms.join(", "), time(left));
                match &self.bar {
                    Some(bar) => {
                        bar.set_position(*step);
                        bar.set_message(text);
                        if step == steps {
                            bar.finish_and_clear();
                            self.bar = None;
                        }
                    }
                    None if self.last.elapsed() >= QUIET || step == steps => {
                        printer::note(&format!("{} {step}/{steps}: {text}", self.stage));
                        self.last = Instant::now();
                    }
                    None => {}
                }
            }
            Event::Evaluated { step, cross_entropy, best } => {
                let mark = if *best { ", best so far" } else { "" };
                let perplexity = cross_entropy.exp();
                self.say(&format!("{} {step}: held-out perplexity {perplexity:.2}{mark}", self.stage));
            }
            Event::Saved { .. } => {}
        }
    }
}

fn time(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}
