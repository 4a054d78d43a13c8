//! The rules of the house, checked by reading the sources. See the import rule in `ARCHITECTURE.md` for the reasons.
//!
//! Each check is a function from a source file to a list of complaints, with tests at the end that show it complaining.
//! Code under `#[cfg(test)]` may use what it likes of the standard library.

#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use source::{Named, Source, code_of, paths, tokens, without_tests};

const MAX_LINES: usize = 600;

/// Which modules of this crate each module may use besides itself: the import rule, downhill only.
const MAY_USE: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("config", &["types"]),
    ("codec", &["types", "config"]),
    ("paxos", &["types", "config"]),
    ("bank", &["types", "config", "codec"]),
    ("txn", &["types", "config", "codec", "bank"]),
    ("shard", &["types", "config", "codec", "paxos", "bank", "txn"]),
    ("storage", &["types", "config", "codec"]),
    ("net", &["types", "config", "codec"]),
    ("audit", &["types", "bank", "shard", "storage"]),
    ("backup", &["types", "config", "bank", "storage", "drive"]),
    ("drive", &["types", "config", "paxos", "bank", "txn", "shard", "storage"]),
    ("testset", &["types", "config"]),
    ("workload", &["types", "config", "testset"]),
    ("history", &["types", "config"]),
    ("resp", &["types"]),
    ("metrics", &["types"]),
    ("report", &["types", "config", "metrics", "testset"]),
    (
        "sim",
        &[
            "types", "config", "codec", "paxos", "bank", "txn", "shard", "storage", "net", "drive", "audit",
            "testset", "workload", "metrics", "history",
        ],
    ),
    ("soak", &["report", "sim"]),
    (
        "runtime",
        &[
            "types", "config", "codec", "paxos", "bank", "txn", "shard", "storage", "net", "drive", "audit",
            "backup", "testset", "workload", "metrics", "report", "resp",
        ],
    ),
    ("client", &["types", "config", "bank", "txn", "testset", "runtime"]),
    // What it measures is the bank from outside. What it predicts is a simulation of the bank's own code.
    (
        "bench",
        &[
            "types", "config", "codec", "bank", "txn", "shard", "storage", "net", "drive", "sim", "workload",
            "metrics", "report", "runtime",
        ],
    ),
];

/// The protocol: everything comes in as an input, so that three drivers can run it and every run can be repeated.
const PURE: &[&str] = &["types", "config", "codec", "paxos", "bank", "txn", "shard", "history", "resp"];
const NOT_IN_PURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::time",
    "std::thread",
    "mio",
    "crossbeam",
    "parking_lot",
    "log",
    "rand",
    "HashMap",
    "HashSet",
    "Instant",
    "SystemTime",
];
/// The simulator has one thread and its own time.
const NOT_IN_SIM: &[&str] = &["mio", "std::thread", "std::net", "Instant", "SystemTime"];
/// The executable parses arguments; what it starts lives in the library, where it can be tested.
const NOT_IN_BIN: &[&str] = &["mio", "crossbeam", "std::fs", "std::thread", "TcpStream", "TcpListener"];

const TOP_LEVEL: &[&str] = &[
    "ARCHITECTURE.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Makefile",
    "README.md",
    "benches",
    "bin",
    "data",
    "examples",
    "src",
    "tests",
];

// ---- Checks --------------------------------------------------------------------------------------------------------

/// Complains where the shipped code names one of `banned`: a path from its beginning, or a capitalised name anywhere.
fn bans(source: &Source, banned: &[&str]) -> Vec<String> {
    let named = paths(&source.shipped);
    // A module of one's own may share its name with a crate, as paxos/log.rs does.
    let is_local = |path: &[String]| matches!(path[0].as_str(), "crate" | "self" | "super");
    let local: BTreeSet<&String> = named
        .iter()
        .filter(|n| n.in_use && is_local(&n.path))
        .filter_map(|n| n.path.last())
        .chain(named.windows(2).filter(|w| w[0].path == ["mod"]).map(|w| &w[1].path[0]))
        .collect();
    let mut complaints = Vec::new();
    for Named { line, path, in_use } in &named {
        let is_crate = (*in_use || path.len() > 1) && !local.contains(&path[0]) && !is_local(path);
        let hit = banned.iter().find(|ban| {
            if ban.starts_with(char::is_uppercase) {
                return path.iter().any(|part| part == **ban);
            }
            let ban: Vec<&str> = ban.split("::").collect();
            let mut path: Vec<&str> = path.iter().map(String::as_str).collect();
            if matches!(path[0], "core" | "alloc") {
                path[0] = "std";
            }
            let is_glob = path == ["std", "*"] && ban[0] == "std";
            // A length of time is a number; only reading a clock is not repeatable.
            is_crate && (is_glob || path.starts_with(&ban)) && !path.starts_with(&["std", "time", "Duration"])
        });
        if hit.is_some() {
            complaints.push(format!("{}:{line}: may not name {}", source.path, path.join("::")));
        }
    }
    complaints
}

fn check_purity(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    if PURE.contains(&source.top_module()) {
        complaints.extend(bans(source, NOT_IN_PURE));
    }
    if source.top_module() == "sim" {
        complaints.extend(bans(source, NOT_IN_SIM));
    }
    if source.is_in("bin/") {
        complaints.extend(bans(source, NOT_IN_BIN));
    }
    if source.top_module() != "codec" {
        complaints.extend(bans(source, &["bincode"]));
    }
    complaints
}

fn check_imports(source: &Source) -> Vec<String> {
    let module = source.module();
    let Some(&top) = module.first() else { return Vec::new() };
    let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == top) else {
        return vec![format!("{}: module {top} has no row in MAY_USE of tests/tidy.rs", source.path)];
    };
    let mut complaints = Vec::new();
    for Named { line, path, .. } in paths(&source.shipped) {
        let supers = path.iter().take_while(|part| *part == "super").count();
        let target = match path[0].as_str() {
            "crate" => path.get(1),
            "super" if supers >= module.len() => path.get(supers),
            _ => None,
        };
        let Some(target) = target else { continue };
        if target != top && !allowed.contains(&target.as_str()) {
            complaints.push(format!(
                "{}:{line}: {top} may not use {target}; it may use [{}]",
                source.path,
                allowed.join(", ")
            ));
        }
    }
    complaints
}

fn check_length(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    if lines <= MAX_LINES {
        return Vec::new();
    }
    vec![format!("{}: {lines} lines; more than {MAX_LINES} are two ideas", source.path)]
}

fn check_docs(source: &Source) -> Vec<String> {
    if source.text.starts_with("//!") {
        return Vec::new();
    }
    vec![format!("{}:1: begins without //! docs that say what it is for", source.path)]
}

/// What may not stand anywhere, or not in shipped code.
fn check_habits(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut complain = |line, what| complaints.push(format!("{}:{line}: {what}", source.path));
    for (line, text) in source.shipped.lines().enumerate() {
        if text.contains(".unwrap()") {
            complain(line + 1, "unwrap(); handle the error, or expect() with the reason why there is none");
        }
    }
    for (line, text) in source.code.lines().enumerate() {
        if text.replace(' ', "").contains("#[ignore") {
            complain(line + 1, "an ignored test; fix it or remove it");
        }
    }
    for Named { line, path, .. } in paths(&source.code) {
        if path.windows(2).any(|pair| pair == ["thread", "sleep"]) {
            complain(line, "thread::sleep; wait for a condition, with a limit");
        }
    }
    complaints
}

/// Paths that exist on one developer's machine only. Written in two pieces, since this file is read too.
fn check_places(path: &str, text: &str) -> Vec<String> {
    let places = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];
    let lines = text.lines().enumerate();
    let hits = lines.filter_map(|(line, text)| Some((line, places.iter().find(|p| text.contains(**p))?)));
    hits.map(|(line, place)| format!("{path}:{}: a path under {place}", line + 1)).collect()
}

/// `tracked`: every file of the repository. The layout shows the architecture, so the top level stays short.
fn check_top_level(tracked: &[String]) -> Vec<String> {
    let top: BTreeSet<&str> = tracked.iter().filter_map(|path| path.split('/').next()).collect();
    let unknown = top.into_iter().filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(name));
    unknown.map(|name| format!("{name}: does not belong to the top level of the repository")).collect()
}

// ---- This repository -----------------------------------------------------------------------------------------------

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `place`, sorted; what does not exist has none.
fn files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.into()];
    }
    let Ok(entries) = fs::read_dir(place) else { return Vec::new() };
    let mut found: Vec<PathBuf> =
        entries.flat_map(|entry| files(&entry.expect("a readable folder").path())).collect();
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).expect("below the repository");
    path.to_string_lossy().replace('\\', "/")
}

fn sources() -> Vec<Source> {
    let places = ["src", "bin", "tests", "benches", "examples"];
    let all = places.iter().flat_map(|place| files(&root().join(place)));
    all.filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .map(|path| Source::new(&relative(&path), &fs::read_to_string(&path).expect("UTF-8")))
        .collect()
}

fn assert_clean(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn assert_sources_pass(check: fn(&Source) -> Vec<String>) {
    let sources = sources();
    assert!(sources.iter().any(|s| s.path == "src/types.rs"), "the sources were not found");
    assert_clean(sources.iter().flat_map(check).collect());
}

#[test]
fn the_protocol_is_pure_and_every_crate_stays_in_its_layer() {
    assert_sources_pass(check_purity);
}

#[test]
fn imports_run_downhill() {
    assert_sources_pass(check_imports);
}

#[test]
fn no_source_is_too_long() {
    assert_sources_pass(check_length);
}

#[test]
fn every_source_says_what_it_is_for() {
    assert_sources_pass(check_docs);
}

#[test]
fn no_unwrap_no_sleep_no_ignored_test() {
    assert_sources_pass(check_habits);
}

#[test]
fn nothing_refers_to_one_machine() {
    let places = [&[".ci"], TOP_LEVEL].concat();
    let all = places.iter().flat_map(|place| files(&root().join(place)));
    assert_clean(
        all.filter_map(|path| Some(check_places(&relative(&path), &fs::read_to_string(&path).ok()?)))
            .flatten()
            .collect(),
    );
}

#[test]
fn the_top_level_is_short() {
    // What is not tracked is nobody's business; without git there is nothing that could have been added.
    let Ok(git) = Command::new("git").arg("ls-files").current_dir(root()).output() else { return };
    let tracked: Vec<String> = String::from_utf8_lossy(&git.stdout).lines().map(String::from).collect();
    assert_clean(check_top_level(&tracked));
}

// ---- The checks themselves -----------------------------------------------------------------------------------------

fn complaints(check: fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
    check(&Source::new(path, text)).len()
}

#[test]
fn code_is_told_from_comments_and_literals() {
    let text = "a /* b /* c */ d */ e // f\n\"g \\\" h\" 'i' '\\'' &'j str r#\"k\" l\"# br\"m\" var\"n\"";
    let words: Vec<String> = tokens(&code_of(text)).into_iter().map(|(_, t)| t).collect();
    assert_eq!(words, ["a", "e", "&", "'", "j", "str", "var"]);
    let tested = "fn a() {}\n#[cfg(test)]\nmod t {\n fn b() {}\n}\n#[cfg(test)]\nmod u;\nfn c() {}";
    let shipped = without_tests(tested);
    assert!(shipped.contains("a()") && shipped.contains("c()") && !shipped.contains('b'), "{shipped}");
    assert_eq!(shipped.lines().count(), tested.lines().count());
}

#[test]
fn use_trees_are_expanded() {
    let code =
        "use std::{fs::{self, File}, io as i, time::*}; x.log(); log::info!(a); fn f() -> impl A + use<> {}";
    let named: Vec<String> = paths(code).into_iter().map(|n| n.path.join("::")).collect();
    let expected = ["std::fs", "std::fs::File", "std::io", "std::time::*", "x", "log::info", "a", "fn", "f"];
    assert_eq!(named[..9], expected);
}

#[test]
fn impure_code_is_rejected() {
    for bad in [
        "use std::fs::File;",
        "use std::{collections::BTreeMap, thread};",
        "fn f() { std::net::TcpStream::connect(a); }",
        "use std::time::Instant;",
        "use std::time::*;",
        "use std::time;",
        "fn f() -> core::time::Something {}",
        "use mio::Poll;",
        "fn f() { log::info!(\"x\"); }",
        "use rand::Rng as R;",
        "use crossbeam::channel;",
        "use parking_lot::Mutex;",
        "use std::collections::{HashMap as M};",
        "struct S(std::collections::HashSet<u8>);",
        "use bincode::serde;",
    ] {
        assert_eq!(complaints(check_purity, "src/paxos/replica.rs", bad), 1, "{bad}");
    }
    for good in [
        "use std::time::Duration; use std::collections::BTreeMap;",
        "/// Never a HashMap, and no mio::Poll.\nfn f() { log.append(1); self.log.append(2); }",
        "mod log; use self::log::Log; fn f() { log::Log::new() }",
        "use super::log; fn f() { log::Log::new() }",
        "const S: &str = \"std::fs::File\";",
        "#[cfg(test)]\nmod tests { use std::collections::HashMap; use rand::Rng; }",
    ] {
        assert_eq!(complaints(check_purity, "src/paxos/replica.rs", good), 0, "{good}");
    }
    assert_eq!(complaints(check_purity, "src/storage/wal.rs", "use std::fs::File;"), 0);
    assert_eq!(complaints(check_purity, "src/storage/wal.rs", "use bincode::config;"), 1);
    assert_eq!(complaints(check_purity, "src/codec.rs", "use bincode::config;"), 0);
    assert_eq!(complaints(check_purity, "src/sim/world.rs", "use std::thread; use std::time::Instant;"), 2);
    assert_eq!(complaints(check_purity, "bin/bank.rs", "use std::net::{SocketAddr, TcpStream};"), 1);
}

#[test]
fn imports_uphill_are_rejected() {
    let bad = [
        ("src/types.rs", "use crate::config::Topology;"),
        ("src/types.rs", "use super::config::Topology;"),
        ("src/paxos/log.rs", "use crate::{types::Slot, bank::Bank};"),
        ("src/paxos/log.rs", "fn f() { super::super::bank::g() }"),
        ("src/net/mod.rs", "fn f() { crate::runtime::stop() }"),
        ("src/shard.rs", "use crate::drive;"),
        ("src/novel/mod.rs", ""),
    ];
    for (path, text) in bad {
        assert_eq!(complaints(check_imports, path, text), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/paxos/log.rs", "use crate::types::Slot; use super::message; use crate::paxos::log;"),
        ("src/shard.rs", "use crate::{bank::Bank, paxos::{Replica}};"),
        ("src/types.rs", "#[cfg(test)] mod tests { use super::*; use crate::config::Topology; }"),
        ("src/lib.rs", "pub mod runtime; pub use crate::runtime::Node;"),
        ("tests/net.rs", "use crate::anything;"),
    ] {
        assert_eq!(complaints(check_imports, path, text), 0, "{path}: {text}");
    }
}

#[test]
fn bad_habits_are_rejected() {
    let tested = "#[cfg(test)]\nmod tests { fn f() { x.unwrap() } }";
    assert_eq!(complaints(check_habits, "src/a.rs", "fn f() { x.unwrap() }"), 1);
    assert_eq!(complaints(check_habits, "src/a.rs", &format!("fn f() {{ x.expect(\"why\") }}\n{tested}")), 0);
    assert_eq!(complaints(check_habits, "tests/a.rs", "fn f() { x.unwrap() }"), 0);
    assert_eq!(complaints(check_habits, "tests/a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}"), 1);
    assert_eq!(complaints(check_habits, "tests/a.rs", "fn f() { std::thread::sleep(d) }"), 1);
    assert_eq!(complaints(check_habits, "src/a.rs", "use std::{thread::{spawn, sleep}};"), 1);
    assert_eq!(complaints(check_habits, "src/a.rs", "// thread::sleep\nfn f() { std::thread::park() }"), 0);
    assert_eq!(complaints(check_length, "src/a.rs", &"\n".repeat(MAX_LINES)), 0);
    assert_eq!(complaints(check_length, "tests/a.rs", &"\n".repeat(MAX_LINES + 1)), 1);
    assert_eq!(complaints(check_docs, "src/a.rs", "// What it is for.\nfn f() {}"), 1);
    assert_eq!(complaints(check_docs, "src/a.rs", "//! What it is for.\n"), 0);
    assert_eq!(check_places("README.md", concat!("a\ncd /ho", "me/me/bank\n")).len(), 1);
    assert_eq!(check_places("README.md", "cd homework/tmp\n").len(), 0);
    let tracked = ["src/lib.rs", ".ci/run", "notes.txt", "Makefile"].map(String::from);
    assert_eq!(check_top_level(&tracked).len(), 1);
}
