//! A bar on standard error, for sets that take long enough to wonder whether anything happens.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

/// Shorter sets are over before a bar could be read.
const SHORTEST: usize = 200;

/// A bar over `total` rows, advanced with `inc` and removed with `finish_and_clear`. It shows nothing when the set is
/// short or standard error is not a terminal, so the caller need not ask.
pub fn progress(total: usize, label: &str) -> ProgressBar {
    if total <= SHORTEST || !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} rows, {per_sec}")
        .expect("the template above is well formed");
    ProgressBar::new(total as u64).with_style(style).with_message(label.to_string())
}

/// A bar over `total` simulated runs on standard error, if that is a terminal and the caller wants one.
pub fn soak_bar(total: u64, wanted: bool) -> ProgressBar {
    if !wanted || !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} seeds, {per_sec}, {eta} left")
        .expect("the template above is well formed");
    ProgressBar::new(total).with_style(style)
}

/// A bar over something that is measured by its share, in thousandths, on standard error, if that is a terminal.
pub fn share_bar() -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{wide_bar} {percent} %").expect("the template above is well formed");
    ProgressBar::new(1000).with_style(style)
}
