//! Runs a seed and catches what goes wrong, as something that can be counted, printed and repeated.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::rc::Rc;
use std::sync::Once;

use serde::{Deserialize, Serialize};

use crate::sim::chaos::{Summary, run};
use crate::sim::plan::Plan;
use crate::sim::trace::Trace;

/// Lines of the whole world's log in a report, and of each server's.
const LAST_LINES: usize = 60;
const SERVER_LINES: usize = 8;

/// A rule that broke.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Violation {
    pub seed: u64,
    /// What the assertion said, with the number of the rule.
    pub message: String,
    /// Where in the sources it stands.
    pub place: String,
}

impl Violation {
    /// The number of the rule, as in P2, or `None` where something broke that has none (a livelock, an overflow).
    pub fn rule(&self) -> Option<&str> {
        let text = self.message.as_bytes();
        let at = text
            .windows(3)
            .position(|w| b"PBTSH".contains(&w[0]) && w[1].is_ascii_digit() && w[2] == b':')?;
        let begins = at == 0 || !text[at - 1].is_ascii_alphanumeric();
        begins.then(|| &self.message[at..at + 2])
    }

    /// Runs the seed again and tells what led to the violation: the plan, the last lines of the log, and the last ones of
    /// every server.
    pub fn story(&self) -> String {
        let lines = Rc::new(RefCell::new(VecDeque::new()));
        let again = attempt(self.seed, Trace::Recent(lines.clone()));
        let mut text = format!("{:?}\n\n", Plan::draw(self.seed));
        if again.as_ref().err() != Some(self) {
            text += &format!("when repeated it ended otherwise: {again:?}\n");
        }
        let lines = lines.borrow();
        let last: Vec<&String> = lines.iter().rev().take(LAST_LINES).collect();
        for line in last.into_iter().rev() {
            text += &format!("{line}\n");
        }
        let word = |line: &String| line.split_whitespace().nth(1).map(str::to_string);
        let mut places: Vec<String> = lines.iter().filter_map(word).collect();
        places.retain(|p| p.starts_with('S') && p[1..].parse::<u16>().is_ok());
        places.sort_by_key(|p| p[1..].parse::<u16>().unwrap_or(0));
        places.dedup();
        for place in places {
            text += &format!("\n{place} last:\n");
            let own: Vec<&String> = lines.iter().filter(|line| word(line).as_ref() == Some(&place)).collect();
            for line in own.iter().skip(own.len().saturating_sub(SERVER_LINES)) {
                text += &format!("{line}\n");
            }
        }
        text
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {} ({})", self.seed, self.message, self.place)
    }
}

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static CAUGHT: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Panics of runs are results, not accidents: they go to [`CAUGHT`] and not to standard error.
fn catch_panics_of_runs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            if !CATCHING.get() {
                return usual(info);
            }
            let payload = info.payload();
            let text = payload.downcast_ref::<String>().cloned();
            let text = text.or(payload.downcast_ref::<&str>().map(|t| t.to_string()));
            let place = info.location().map(|l| format!("{}:{}", l.file(), l.line()));
            let place = place.unwrap_or_default();
            CAUGHT.set(Some((text.unwrap_or_else(|| "a panic without words".into()), place)));
        }));
    });
}

/// Runs a seed. A panic on the way is a violation.
pub fn attempt(seed: u64, trace: Trace) -> Result<Summary, Violation> {
    catch_panics_of_runs();
    CATCHING.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| run(seed, trace)));
    CATCHING.set(false);
    result.map_err(|_| {
        let (message, place) = CAUGHT.take().unwrap_or_default();
        Violation { seed, message, place }
    })
}
