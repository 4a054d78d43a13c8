//! Random runs of the simulated world. A failure names its seed, the rule, what led to it, and the command that repeats it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::rc::Rc;

use serde_json::json;
use shardpaxosbank::sim::{self, Coverage, Seen, Trace, Violation, attempt};
use shardpaxosbank::soak::{FULL_COVERAGE, Plan, Totals, soak};

/// Runs of the suite. `SIM_FROM` and `SIM_SEEDS` choose others.
const SEEDS: u64 = FULL_COVERAGE;
/// Where they begin. Which runs meet what is rare differs from change to change, and not every five hundred meet all.
const FIRST: u64 = 500;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

fn good(totals: &Totals) {
    for violation in &totals.violations {
        eprintln!("{}\n{violation}\nrepeat it with: bank sim --seed {}\n", violation.story(), violation.seed);
    }
    assert!(totals.violations.is_empty(), "{} runs failed", totals.violations.len());
    println!("{}", totals.text());
    assert!(totals.is_good(), "these runs have a hole:\n{}", totals.text());
}

fn plan(first: u64, end: u64) -> Plan {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    Plan { first, end, limit: None, jobs, keep_going: true, progress: None, bar: false }
}

#[test]
fn random_worlds_lose_no_money_and_come_to_rest() {
    let first = number("SIM_FROM").unwrap_or(FIRST);
    let totals = soak(&plan(first, first + number("SIM_SEEDS").unwrap_or(SEEDS)));
    good(&totals.expect("no file is involved"));
}

/// Seeds that failed once, the core or the simulator being at fault.
#[test]
fn seeds_that_failed_once_stay_clean() {
    let text = include_str!("../data/seeds.txt");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(!lines.is_empty());
    for line in lines {
        let mut words = line.split_whitespace();
        let seed = words.next().expect("a line is not empty").parse().expect("a line begins with a seed");
        assert!(words.next().is_some_and(|commit| commit.len() >= 7), "{line}: no commit");
        assert!(words.next().is_some(), "{line}: does not say what it was");
        if let Err(violation) = attempt(seed, Trace::Off) {
            panic!("{}\n{violation}", violation.story());
        }
    }
}

/// One seed is one story: the trace, its hash, the summary.
#[test]
fn a_seed_decides_everything() {
    for seed in 0..20 {
        let lines = || Rc::new(RefCell::new(VecDeque::new()));
        let (one, two) = (lines(), lines());
        let first = attempt(seed, Trace::Recent(one.clone()));
        let second = attempt(seed, Trace::Recent(two.clone()));
        assert_eq!(first, second);
        assert_eq!(one, two);
        assert_eq!(first, attempt(seed, Trace::Off), "whether a log is kept changes the run");
        let hashes = [first, attempt(seed + 1000, Trace::Off)].map(|run| run.expect("a healthy run").hash);
        assert_ne!(hashes[0], hashes[1]);
    }
}

#[test]
fn a_violation_names_its_rule() {
    let broken = |message: &str| Violation { seed: 1, message: message.into(), place: "here".into() };
    assert_eq!(broken("P2: two values").rule(), Some("P2"));
    assert_eq!(broken("assertion `left == right` failed: P4: the digest of S1").rule(), Some("P4"));
    assert_eq!(broken("not at rest 40 s after healing: T5: a lock is left").rule(), Some("T5"));
    assert_eq!(broken("attempt to subtract with overflow").rule(), None);
    assert_eq!(broken("Poisoned: lock").rule(), None);
}

/// A suite of `runs` that met everything but one.
fn met_all_but(missed: Option<Seen>, runs: u64) -> Totals {
    let mut coverage = Coverage::default();
    Seen::ALL.iter().filter(|sight| Some(**sight) != missed).for_each(|sight| coverage.see(*sight));
    Totals { runs, coverage, ..Totals::default() }
}

#[test]
fn a_suite_that_never_met_something_fails_and_names_it() {
    let whole = met_all_but(None, FULL_COVERAGE);
    assert!(whole.is_good() && !whole.text().contains("never met"), "{}", whole.text());
    for sight in Seen::ALL {
        let holed = met_all_but(Some(*sight), FULL_COVERAGE);
        let text = holed.text();
        let named: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("never met: ")).collect();
        assert_eq!(named, [sight.text()]);
        assert!(!holed.is_good(), "{text}");
        let few = met_all_but(Some(*sight), FULL_COVERAGE - 1);
        assert!(few.is_good() && few.text().contains(sight.text()), "so few need not meet everything");
    }
    let violations = vec![Violation { seed: 1, message: "P2: two values".into(), place: "here".into() }];
    assert!(!Totals { violations, ..whole }.is_good());
}

/// What `bank sim` says of seeds that ran before, and its exit code.
fn told_of(totals: &Totals) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("progress.json");
    let totals = Totals { next: FULL_COVERAGE, ..totals.clone() };
    std::fs::write(&file, json!({"first": 0, "totals": totals}).to_string()).expect("a file");
    let mut bank = Command::new(env!("CARGO_BIN_EXE_bank"));
    bank.args(["sim", "--seeds", &format!("0..{FULL_COVERAGE}"), "--progress"]).arg(file);
    let output = bank.output().expect("bank runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (output.status.code(), String::from_utf8(output.stdout).expect("it writes text"))
}

#[test]
fn the_command_fails_a_suite_with_a_hole() {
    let (code, told) = told_of(&met_all_but(None, FULL_COVERAGE));
    assert_eq!((code, told.contains("never met")), (Some(0), false), "{told}");
    let (code, told) = told_of(&met_all_but(Some(Seen::TwoRecoverers), FULL_COVERAGE));
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("never met: two servers recovered one transaction at once\n"), "{told}");
    assert!(told.contains("prove less than they should"), "{told}");
}

/// The plan, the last lines of the world, the last lines of each server, the rule, and the command that repeats it. No
/// seed fails, so one is stopped in its middle, as by a rule that breaks there; `make mutants` looks at stories of real ones.
#[test]
fn a_violation_tells_what_led_to_it_and_how_to_see_it_again() {
    const SEED: u64 = 3;
    thread_local!(static LINES: Cell<u32> = const { Cell::new(0) });
    let stop: fn(&str) = |_| {
        LINES.set(LINES.get() + 1);
        assert!(LINES.get() < 1000, "P2: two values for slot 5");
    };
    let violation = attempt(SEED, Trace::Tell(stop)).expect_err("it was stopped");
    assert_eq!((violation.seed, violation.rule()), (SEED, Some("P2")));
    assert!(violation.message.contains("two values for slot 5"), "{violation}");
    assert!(violation.place.starts_with("tests/sim.rs:"), "{violation}");

    let recent = Rc::new(RefCell::new(VecDeque::new()));
    let whole = attempt(SEED, Trace::Recent(recent.clone()));
    let story = violation.story();
    let story: Vec<&str> = story.lines().collect();
    let at = |line: &str| story.iter().position(|l| *l == line).unwrap_or_else(|| panic!("no {line:?}"));
    assert_eq!(story[0], format!("{:?}", sim::Plan::draw(SEED)));
    // Which proves nothing, and must not be kept from the reader.
    let otherwise = at(&format!("when repeated it ended otherwise: {whole:?}"));
    let recent: Vec<String> = recent.borrow().iter().cloned().collect();
    let last: Vec<&str> = recent[recent.len() - 60..].iter().map(String::as_str).collect();
    assert_eq!(story[otherwise + 1..otherwise + 61], last);
    let mut servers = 0;
    for server in 1..100 {
        let name = format!("S{server}");
        let of_it = |line: &&String| line.split_whitespace().nth(1) == Some(&name);
        let own: Vec<&String> = recent.iter().filter(of_it).collect();
        if own.is_empty() {
            continue;
        }
        servers += 1;
        let own = &own[own.len().saturating_sub(8)..];
        let begins = at(&format!("{name} last:")) + 1;
        assert_eq!(story[begins..begins + own.len()], *own);
        assert_eq!(story.get(begins + own.len()).copied().unwrap_or(""), "", "and no other's");
    }
    let sections = story.iter().filter(|line| line.ends_with(" last:")).count();
    assert!(servers > 1 && servers == sections, "{servers} {sections}");

    let (code, told) = told_of(&Totals { violations: vec![violation.clone()], ..met_all_but(None, 1) });
    assert_eq!(code, Some(1), "{told}");
    let parts = [&violation.story()[..], &violation.to_string(), "rule P2 broke", "bank sim --seed 3 --log"];
    let places = parts.map(|part| told.find(part).unwrap_or_else(|| panic!("no {part:?} in {told}")));
    assert!(places.is_sorted(), "{told}");
}

/// The command as a user has it: one seed twice with the same hash, a range that stops and goes on, bad arguments.
#[test]
fn the_command_repeats_seeds_and_resumes_ranges() {
    let bank = |args: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_bank")).arg("sim").args(args).output().expect("bank runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it writes text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, told, _) = bank(&["--seed", "3"]);
    assert_eq!(code, Some(0));
    assert!(told.contains("seed 3\n") && told.contains("topology") && told.contains("\ntrace "), "{told}");
    assert_eq!(bank(&["--seed", "3"]).1, told);

    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("progress.json");
    let file = file.to_str().expect("a plain path");
    // The limit lets one block of seeds begin, and no second one.
    let (code, told, complaint) = bank(&["--seeds", "500..900", "--minutes", "0.00001", "--progress", file]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    assert!(told.starts_with("200 runs "), "{told}");
    let (code, told, _) = bank(&["--seeds", "500..900", "--progress", file]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.starts_with("400 runs ") && !told.contains("never met"), "{told}");
    let (code, _, complaint) = bank(&["--seeds", "505..900", "--progress", file]);
    assert_eq!(code, Some(2));
    assert!(complaint.contains("progress.json") && complaint.contains("does not fit"), "{complaint}");

    for bad in [["--seeds", "7..7"], ["--seeds", "x..9"], ["--minutes", "0"], ["--seed", "-1"]] {
        let (code, _, complaint) = bank(&bad);
        assert_eq!(code, Some(2), "{bad:?}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
    }
}

/// `bank sim --log | head` ended in a panic that looked like a violation.
#[test]
fn a_log_that_nobody_reads_to_its_end_is_no_violation() {
    let mut bank = Command::new(env!("CARGO_BIN_EXE_bank"))
        .args(["sim", "--seed", "3", "--log"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bank runs");
    let mut line = String::new();
    let told = bank.stdout.take().expect("it is piped");
    BufReader::new(told).read_line(&mut line).expect("it tells something");
    assert_eq!(line, "seed 3\n");
    let output = bank.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stderr), (Some(141), vec![]));
}
