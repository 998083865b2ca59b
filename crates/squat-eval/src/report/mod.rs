//! The page of a run: one HTML file without external resources.
//!
//! * `data`: the content. `page`: the text and the template. `curves`, `dots`, `bars`, `heatmap`: the plots, made of
//!   the elements of `svg` and the ticks of `scale`.

mod bars;
mod curves;
mod data;
mod dots;
mod heatmap;
mod page;
mod scale;
mod svg;

pub use data::{FormValue, LossPoint, Parity, QuickstartReport, RunInfo, Sample, Setting, TokenBits};
pub use page::{render_html, write_html};
