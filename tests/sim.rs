//! Random runs of the simulated world. A failure names its seed, the rule, what led to it, and the command that repeats it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::rc::Rc;

use shardpaxosbank::sim::{Trace, Violation, attempt};
use shardpaxosbank::soak::{FULL_COVERAGE, Plan, Totals, soak};

/// Runs of the suite. `SIM_FROM` and `SIM_SEEDS` choose others.
const SEEDS: u64 = FULL_COVERAGE;

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
    let first = number("SIM_FROM").unwrap_or(0);
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
    let (code, told, complaint) = bank(&["--seeds", "0..400", "--minutes", "0.00001", "--progress", file]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    assert!(told.starts_with("200 runs "), "{told}");
    let (code, told, _) = bank(&["--seeds", "0..400", "--progress", file]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.starts_with("400 runs ") && !told.contains("never met"), "{told}");
    let (code, _, complaint) = bank(&["--seeds", "5..400", "--progress", file]);
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
