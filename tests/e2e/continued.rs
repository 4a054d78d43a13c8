//! `--data-dir`: what one process left, the next one continues, and refuses where it cannot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use shardpaxosbank::config::Topology;

use crate::common::{
    Ran, Running, assert_as_model, audit, audit_set, bank, data, model_of, put, run, set_text, temp,
};
use shardpaxosbank::testset::parse;

const SMALL: Topology = Topology { clusters: 3, servers_per_cluster: 3, accounts: 30, initial_balance: 100 };
const FLAGS: [&str; 5] = ["--accounts", "30", "--balance", "100", "--json"];

fn run_small(file: &str, kept: &str, more: &[&str]) -> Ran {
    run(&[&["run", file, "--data-dir", kept], &FLAGS[..], more].concat())
}

/// Every file below a directory with its bytes; a log is mostly zeros, so that is cheap.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let bytes = std::fs::read(&path).expect("a readable file");
            found.insert(path, bytes);
        }
    }
    found
}

/// Exit code 2, nothing on standard output, one line on standard error with all of `parts`.
fn assert_refused(ran: &Ran, parts: &[&str]) {
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert_eq!(ran.out, "");
    assert_eq!(ran.err.lines().count(), 1, "one line, not\n{}", ran.err);
    for part in parts {
        assert!(ran.err.contains(part), "no {part:?} in {:?}", ran.err);
    }
}

#[test]
fn state_carries_over_between_processes() {
    let dir = temp();
    let kept = dir.path().join("kept").display().to_string();
    let topology = Topology::default();
    let (first, second) = (data("intra.csv"), data("cross.csv"));
    let text = |p: &Path| std::fs::read_to_string(p).expect("a set file");
    // Both files as one are what must have come of the two runs. They have different shapes; so each is parsed alone.
    let parsed = |p: &Path| parse("data", text(p).as_bytes(), &topology).expect("a sound file").sets;
    let together = shardpaxosbank::testset::SetFile { sets: [parsed(&first), parsed(&second)].concat() };
    let mut sets = Vec::new();
    for file in [&first, &second] {
        let ran = run(&["run", &file.display().to_string(), "--json", "--data-dir", &kept]).with_code(0);
        assert!(ran.err.contains(&kept), "{}", ran.err);
        sets.extend(ran.sets());
    }
    assert_as_model("intra.csv, then cross.csv", &sets, &model_of(&together, &topology, false), &topology);

    // Anew, and nothing is known of all that. What does not belong to a server stays.
    let mine = put(Path::new(&kept), "notes.txt", "mine");
    let path = first.display().to_string();
    let ran = run(&["run", &path, "--json", "--data-dir", &kept, "--fresh"]).with_code(0);
    let alone = shardpaxosbank::testset::SetFile { sets: parsed(&first) };
    assert_as_model("--fresh", &ran.sets(), &model_of(&alone, &topology, false), &topology);
    assert_eq!(std::fs::read_to_string(mine).expect("it is still there"), "mine");
}

/// Set 1 has accounts of its own, and its outcomes were told before the end: they must all be there.
#[test]
fn a_killed_run_is_continued() {
    let dir = temp();
    let kept = dir.path().join("kept").display().to_string();
    let told = ["(1, 2, 5)", "(2, 11, 100)", "(11, 21, 200)", "(21, 1, 1)"].map(String::from);
    let rows = |n: u64| -> Vec<String> {
        let account = |i: u64| 3 + i % 8 + 10 * (i / 8 % 3);
        (0..250)
            .map(|i| format!("({}, {}, {})", account(i * 7 + n), account(i * 7 + n + 1 + i % 23), 1 + i % 9))
            .collect()
    };
    let mut text = set_text(1, &SMALL, &told);
    (2..200).for_each(|n| text += &set_text(n, &SMALL, &rows(n as u64)));
    let long = put(dir.path(), "long.csv", &text);
    let check = put(dir.path(), "audit.csv", &audit_set(1, &SMALL));
    for kills in 1..=3 {
        let mut running = Running::start(bank(&[&["run", &long, "--data-dir", &kept], &FLAGS[..]].concat()));
        // Rows that were not told may be anywhere; the second line means that the third set is running.
        for _ in 0..1 + kills {
            let line = running.line().expect("a set has run");
            assert!(line.starts_with('{'), "{line}");
        }
        running.kill();
        let ran = run_small(&check, &kept, &[]).with_code(0);
        let held = audit(&ran.sets()[0], &SMALL);
        // The same four transfers each time; from the second on account 2 has 5 and 11 has 0 when they begin.
        let expected = match kills {
            1 => [96, 5, 0, 299],
            // 2 has 10 then, too little for 100; 11 has nothing for 200.
            2 => [92, 10, 0, 298],
            _ => [88, 15, 0, 297],
        };
        assert_eq!([1, 2, 11, 21].map(|a| held[&a]), expected, "after kill {kills}");
    }
}

/// One directory that was used, and what must not be done with it.
#[test]
fn a_directory_that_does_not_fit_is_refused_and_left_alone() {
    let dir = temp();
    let place = |name: &str| dir.path().join(name);
    let shown = |name: &str| place(name).display().to_string();
    let file = put(dir.path(), "one.csv", &set_text(1, &SMALL, &["(1, 11, 5)".into(), "(12, 2, 5)".into()]));
    for kept in ["ours", "theirs"] {
        run_small(&file, &shown(kept), &[]).with_code(0);
    }
    // A file that fits every topology.
    let any = put(dir.path(), "any.csv", "1,\"(1, 2, 3)\",\"[S1]\"\n");
    let before = contents(&place("ours"));
    let refused = |parts: &[&str], arguments: &[&str]| {
        let untouched = contents(&place("ours"));
        assert_refused(&run(&[&["run", &any, "--data-dir", &shown("ours")], arguments].concat()), parts);
        assert!(contents(&place("ours")) == untouched, "something was changed by {arguments:?}");
    };

    // Another topology.
    refused(&["S1/", "topology"], &["--accounts", "31", "--balance", "100"]);
    refused(&["topology"], &["--accounts", "30", "--balance", "99"]);
    refused(&["topology"], &["--accounts", "30", "--balance", "100", "--clusters", "1"]);
    // Not by its missing directories, of which none is made.
    refused(&["topology", "clusters"], &["--accounts", "30", "--balance", "100", "--clusters", "4"]);

    // A server of another bank, or the wrong server of this one.
    let (s5, aside) = (place("ours").join("S5"), place("aside"));
    std::fs::rename(&s5, &aside).expect("moved away");
    std::fs::rename(place("theirs").join("S5"), &s5).expect("mixed in");
    refused(&["S5", "cluster"], &FLAGS);
    std::fs::rename(&s5, place("theirs").join("S5")).expect("moved back");
    std::fs::rename(place("ours").join("S6"), &s5).expect("mixed up");
    std::fs::rename(&aside, place("ours").join("S6")).expect("mixed up");
    refused(&["S5", "server"], &FLAGS);
    std::fs::rename(place("ours").join("S6"), &aside).expect("moved away");
    std::fs::rename(&s5, place("ours").join("S6")).expect("moved back");

    // A server that is not there.
    refused(&["S5", "--fresh"], &FLAGS);
    std::fs::rename(&aside, &s5).expect("moved back");
    assert!(
        contents(&place("ours"))
            .into_iter()
            .filter(|(_, b)| !b.is_empty())
            .eq(before.clone().into_iter().filter(|(_, b)| !b.is_empty()))
    );

    // One damaged byte in the first record of one log.
    let log = before.iter().filter(|(p, _)| p.starts_with(&s5)).max_by_key(|(_, bytes)| bytes.len());
    let (log, bytes) = log.expect("S5 has files");
    let mut damaged = bytes.clone();
    let last = damaged.iter().rposition(|b| *b != 0).expect("something was written");
    damaged[last / 2] ^= 0x10;
    std::fs::write(log, &damaged).expect("damaged");
    let name = log.file_name().expect("a file").to_string_lossy().into_owned();

    // All of this has harmed nothing: what S5 lost, its peers have.
    let check = put(dir.path(), "audit.csv", &audit_set(1, &SMALL));
    let ran = run_small(&check, &shown("ours"), &[]).with_code(0);
    assert!(["S5", &name, "damaged"].iter().all(|part| ran.err.contains(part)), "{}", ran.err);
    let held = audit(&ran.sets()[0], &SMALL);
    assert_eq!([1, 2, 11, 12].map(|a| held[&a]), [95, 105, 105, 95]);
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = temp();
    let kept = dir.path().join("kept").display().to_string();
    let rows = |n: usize| format!("{n},\"(1, 2, 1)\",\"[S1, S2, S3, S4, S5, S6, S7, S8, S9]\"\n");
    let long = put(dir.path(), "long.csv", &(1..20_000).map(rows).collect::<String>());
    let mut running = Running::start(bank(&["run", &long, "--data-dir", &kept, "--json"]));
    assert!(running.line().is_some(), "the first set has run");
    for more in [&[][..], &["--fresh"]] {
        let ran = run(&[&["run", &long, "--data-dir", &kept, "--json"], more].concat());
        assert_refused(&ran, &["in use"]);
    }
    for _ in 0..5 {
        assert!(running.line().is_some(), "the first run goes on");
    }
    running.kill();
}
