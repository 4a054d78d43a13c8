//! `bank sim`: one seed told in full, or many counted.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use super::{Plan, Totals, soak};
use crate::sim::{self, Trace, Violation, attempt};

/// What `bank sim` was asked for.
#[derive(Clone, Debug)]
pub enum SimArgs {
    /// One seed; `log` prints everything that happens.
    Seed { seed: u64, log: bool },
    Seeds {
        /// First seed, and the one behind the last.
        range: (u64, u64),
        minutes: Option<f64>,
        jobs: Option<usize>,
        keep_going: bool,
        progress: Option<PathBuf>,
    },
}

/// Reads `A..B`, both numbers, A below B.
pub fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let wrong = || format!("{text}: must be two numbers A..B with A below B, such as 0..1000");
    let (first, end) = text.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| text.trim().replace('_', "").parse::<u64>().map_err(|_| wrong());
    let range = (number(first)?, number(end)?);
    if range.0 < range.1 { Ok(range) } else { Err(wrong()) }
}

/// Runs the command. `Ok(false)` says that a rule broke, or that a full suite has a hole; it was printed.
///
/// # Errors
///
/// A progress file that cannot be used.
pub fn command(args: SimArgs) -> Result<bool, String> {
    match args {
        SimArgs::Seed { seed, log } => Ok(one(seed, log)),
        SimArgs::Seeds { range, minutes, jobs, keep_going, progress } => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let plan = Plan {
                first: range.0,
                end: range.1,
                limit: minutes.map(|m| Duration::from_secs_f64(m * 60.0)),
                jobs: jobs.unwrap_or(cores),
                keep_going,
                progress,
                bar: true,
            };
            let totals = soak(&plan)?;
            report(&totals);
            Ok(totals.is_good())
        }
    }
}

fn one(seed: u64, log: bool) -> bool {
    say(format_args!("seed {seed}\n{:?}", sim::Plan::draw(seed)));
    match attempt(seed, if log { Trace::Tell(|line| say(line)) } else { Trace::Off }) {
        Ok(summary) => {
            say(format_args!(
                "{} requests, {} committed, {:.1} s of virtual time, at rest {:.1} s after healing\ntrace {:016x}\n{}",
                summary.asked,
                summary.committed,
                summary.virtual_us as f64 / 1e6,
                summary.rest_us as f64 / 1e6,
                summary.hash,
                summary.coverage.seen().trim_end()
            ));
            if !summary.judged {
                say("what its clients saw was too hard to judge");
            }
            true
        }
        Err(violation) => {
            describe(&violation);
            false
        }
    }
}

fn report(totals: &Totals) {
    say(totals.text());
    if let Some(violation) = totals.violations.first() {
        describe(violation);
    }
    for violation in totals.violations.iter().skip(1) {
        say(violation);
    }
    if totals.violations.is_empty() && !totals.is_good() {
        say("these runs prove less than they should: see what was never met or judged");
    }
}

/// What led to a violation, which rule it is, and how to see it again.
pub fn describe(violation: &Violation) {
    say(violation.story());
    say(violation);
    if let Some(rule) = violation.rule() {
        say(format_args!("rule {rule} broke; ARCHITECTURE.md says what goes wrong without it"));
    }
    say(format_args!("repeat it with: bank sim --seed {} --log", violation.seed));
}

/// A line on standard output. Whoever closes it has seen enough, as `head` has; there is no verdict then, so the status
/// is that of a tool which a closed pipe ends.
fn say(line: impl Display) {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => process::exit(141),
        Err(e) => {
            eprintln!("error: standard output cannot be written: {e}");
            process::exit(1);
        }
    }
}
