//! Many runs of the simulator: on several threads, with a progress bar, resumable, with what all of them together have
//! met. Behind `bank sim`, `make soak` and `tests/sim.rs`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::report::soak_bar;
use crate::sim::{self, Coverage, Trace, Violation};

mod command;

pub use command::{SimArgs, command, describe, parse_range};

/// Seeds between two looks at the clock, and between two writes of the progress file.
const BLOCK: u64 = 200;
/// So many runs must together have met everything there is to meet.
pub const FULL_COVERAGE: u64 = 500;
/// Of so many runs the history of one may be too hard to judge; the rules inside were checked in those as well.
const UNJUDGED: u64 = 500;

/// Which seeds, and when to stop.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The first seed, and the one behind the last.
    pub first: u64,
    pub end: u64,
    /// Begin no further block after this time.
    pub limit: Option<Duration>,
    pub jobs: usize,
    /// Go on after a violation.
    pub keep_going: bool,
    /// Where to note how far the range has come, and from where to go on.
    pub progress: Option<PathBuf>,
    pub bar: bool,
}

/// What a range of seeds did, together.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Totals {
    pub runs: u64,
    pub committed: u64,
    pub asked: u64,
    pub virtual_us: u64,
    /// The longest way from healing to rest, and the seed that took it.
    pub longest_rest_us: u64,
    pub longest_rest_seed: u64,
    /// Seeds of runs whose clients' history was too hard to judge.
    pub unjudged: Vec<u64>,
    /// Wall time of the runs, over all parts of a range that was resumed.
    pub wall: Duration,
    pub coverage: Coverage,
    pub violations: Vec<Violation>,
    /// The seed with which to go on.
    pub next: u64,
}

/// The progress file. Seeds that failed are written down with their messages.
#[derive(Serialize, Deserialize)]
struct Progress<T> {
    /// The first seed of the range.
    first: u64,
    totals: T,
}

impl Totals {
    fn add(&mut self, run: Result<sim::Summary, Violation>) {
        self.runs += 1;
        match run {
            Ok(summary) => {
                self.committed += summary.committed;
                self.asked += summary.asked;
                self.virtual_us += summary.virtual_us;
                self.unjudged.extend((!summary.judged).then_some(summary.seed));
                self.coverage.merge(&summary.coverage);
                if summary.rest_us > self.longest_rest_us {
                    (self.longest_rest_us, self.longest_rest_seed) = (summary.rest_us, summary.seed);
                }
            }
            Err(violation) => self.violations.push(violation),
        }
    }

    /// One paragraph: how much was run, how fast, what was never met.
    pub fn text(&self) -> String {
        let seconds = self.wall.as_secs_f64().max(1e-6);
        let virtual_s = self.virtual_us as f64 / 1e6;
        let mut text = format!(
            "{} runs in {seconds:.1} s ({:.0}/s), {virtual_s:.0} s of virtual time ({:.0} x real time), {} requests, {} \
             committed, at rest at most {:.1} s after healing (seed {})",
            self.runs,
            self.runs as f64 / seconds,
            virtual_s / seconds,
            self.asked,
            self.committed,
            self.longest_rest_us as f64 / 1e6,
            self.longest_rest_seed,
        );
        if !self.unjudged.is_empty() {
            let some: Vec<_> = self.unjudged.iter().take(10).map(u64::to_string).collect();
            let (n, some) = (self.unjudged.len(), some.join(", "));
            let _ = write!(text, "\n{n} histories were too hard to judge, of seeds {some}");
            if n > 10 {
                text += ", …";
            }
        }
        for sight in self.coverage.missing() {
            let _ = write!(text, "\nnever met: {}", sight.text());
        }
        text
    }

    /// Whether the runs prove anything: no rule broke, nearly every history was judged, and a full suite has met everything.
    pub fn is_good(&self) -> bool {
        let judged = self.unjudged.len() as u64 <= 1 + self.runs / UNJUDGED;
        let met = self.runs < FULL_COVERAGE || self.coverage.missing().is_empty();
        self.violations.is_empty() && judged && met
    }
}

/// Runs a range of seeds.
///
/// # Errors
///
/// A progress file that cannot be read or written, or that belongs to another range or another simulator.
pub fn soak(plan: &Plan) -> Result<Totals, String> {
    let mut totals = match &plan.progress {
        Some(file) if file.exists() => resume(file, plan)?,
        _ => Totals { next: plan.first, ..Totals::default() },
    };
    let bar = soak_bar(plan.end.saturating_sub(plan.first), plan.bar);
    bar.set_position(totals.next - plan.first);
    let (before, started) = (totals.wall, Instant::now());
    while totals.next < plan.end && plan.limit.is_none_or(|limit| started.elapsed() < limit) {
        let block = totals.next..plan.end.min(totals.next + BLOCK);
        let next = AtomicU64::new(block.start);
        let (shared, broken) = (Mutex::new(&mut totals), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..plan.jobs.max(1) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let stop = !plan.keep_going && broken.load(Ordering::Relaxed) > 0;
                        if seed >= block.end || stop {
                            return;
                        }
                        let run = sim::attempt(seed, Trace::Off);
                        broken.fetch_add(u64::from(run.is_err()), Ordering::Relaxed);
                        shared.lock().expect("no run panics outside of its catcher").add(run);
                        bar.inc(1);
                    }
                });
            }
        });
        totals.violations.sort_by_key(|v| v.seed);
        totals.unjudged.sort_unstable();
        totals.wall = before + started.elapsed();
        if !totals.violations.is_empty() && !plan.keep_going {
            totals.next = totals.violations[0].seed;
            break;
        }
        totals.next = block.end;
        if let Some(file) = &plan.progress {
            save(file, plan, &totals).map_err(|e| format!("{}: cannot be written: {e}", file.display()))?;
        }
    }
    bar.finish_and_clear();
    Ok(totals)
}

fn save(file: &Path, plan: &Plan, totals: &Totals) -> io::Result<()> {
    let progress = Progress { first: plan.first, totals };
    // Beside, then renamed: an interruption leaves the old file or the new one.
    let beside = file.with_extension("new");
    fs::write(&beside, serde_json::to_vec_pretty(&progress)?)?;
    fs::rename(beside, file)
}

fn resume(file: &Path, plan: &Plan) -> Result<Totals, String> {
    let name = file.display();
    let bytes = fs::read(file).map_err(|e| format!("{name}: cannot be read: {e}"))?;
    let Progress { first, totals } = serde_json::from_slice::<Progress<Totals>>(&bytes).map_err(|e| {
        format!("{name}: not a progress file of this simulator ({e}); remove it to start anew")
    })?;
    if first != plan.first || totals.next > plan.end {
        return Err(format!(
            "{name}: notes seeds {first}..{} and does not fit {}..{}; remove it to start anew",
            totals.next, plan.first, plan.end
        ));
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_whose_histories_nobody_could_judge_prove_little() {
        let totals =
            |unjudged: &[u64]| Totals { runs: 499, unjudged: unjudged.to_vec(), ..Totals::default() };
        assert!(totals(&[]).is_good() && totals(&[7]).is_good());
        let two = totals(&[7, 9]);
        assert!(!two.is_good());
        assert!(
            two.text().contains("\n2 histories were too hard to judge, of seeds 7, 9\n"),
            "{}",
            two.text()
        );
    }
}
