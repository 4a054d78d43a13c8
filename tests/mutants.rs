//! Planted bugs: each patch under `tests/mutants` puts one into the product, and the simulator has to notice.
//!
//! `make mutants` builds each in turn and runs seeds until one fails; that takes long. Here only the patches themselves
//! are checked: each says which rules it breaks and how, every rule has one, and each still fits the sources. Whoever
//! changes a line that a patch changes renews the patch.
//!
//! A patch begins with `Rules: ` and the numbers, an empty line, and what the bug is and the schedule in which it does
//! harm. It changes the product and nothing else: a simulator that is broken notices nothing. `Model: yes` in the second
//! line says that the schedule lies within the bounds of `tests/model` as `make test` explores them: the model alone must
//! notice the bug.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The numbers of the rules in the documentation of the crate.
fn rules() -> BTreeSet<String> {
    let text = read(&root().join("src/lib.rs"));
    let lines = text.lines().filter_map(|line| line.strip_prefix("//! * **"));
    lines.filter_map(|line| Some(line.split_once("** ")?.0.to_string())).collect()
}

/// Consecutive lines of a file before a change and after it.
struct Hunk {
    file: String,
    before: Vec<String>,
    after: Vec<String>,
}

struct Mutant {
    rules: Vec<String>,
    /// The model must notice it.
    model: bool,
    hunks: Vec<Hunk>,
}

impl Mutant {
    fn parse(text: &str) -> Result<Mutant, String> {
        let at = text.find("\n--- a/").ok_or("no change")?;
        let (header, diff) = text.split_at(at + 1);
        let (header, story) = header.split_once("\n\n").ok_or("no story behind the rules")?;
        let rules = header.strip_prefix("Rules: ").ok_or("does not begin with `Rules: `")?;
        let (rules, model) = match rules.split_once('\n') {
            None => (rules, false),
            Some((rules, "Model: yes")) => (rules, true),
            Some((_, other)) => return Err(format!("what is `{other}` behind the rules?")),
        };
        if story.split_whitespace().count() < 15 {
            return Err("the story is too short to be understood".into());
        }
        let mut file = String::new();
        let mut hunks: Vec<Hunk> = Vec::new();
        for line in diff.lines() {
            if let Some(name) = line.strip_prefix("--- a/") {
                file = name.to_string();
            } else if let Some(name) = line.strip_prefix("+++ b/") {
                if name != file {
                    return Err(format!("renames {file}"));
                }
            } else if line.starts_with("@@ ") {
                hunks.push(Hunk { file: file.clone(), before: Vec::new(), after: Vec::new() });
            } else {
                let hunk = hunks.last_mut().ok_or("lines before the first hunk")?;
                let Some((kind, line)) = line.split_at_checked(1) else { return Err("an empty line".into()) };
                if matches!(kind, " " | "-") {
                    hunk.before.push(line.to_string());
                }
                if matches!(kind, " " | "+") {
                    hunk.after.push(line.to_string());
                }
            }
        }
        Ok(Mutant { rules: rules.split_whitespace().map(String::from).collect(), model, hunks })
    }

    /// What is wrong with it, given the sources.
    fn complaints(&self, rules: &BTreeSet<String>, source: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let mut complaints = Vec::new();
        for rule in self.rules.iter().filter(|rule| !rules.contains(*rule)) {
            complaints.push(format!("there is no rule {rule}"));
        }
        if self.rules.is_empty() || self.hunks.is_empty() {
            complaints.push("breaks no rule, or changes nothing".into());
        }
        // It knows neither damage nor repetitions by clients nor forgetting, and its clients read nothing.
        let beyond = ["P3", "B3", "T6", "T7", "S1", "S2", "S3"];
        if self.model && self.rules.iter().all(|rule| beyond.contains(&rule.as_str())) {
            complaints.push("the model does not know these rules".into());
        }
        for Hunk { file, before, after } in &self.hunks {
            if !file.starts_with("src/") || file.starts_with("src/sim") {
                complaints.push(format!("{file} is not the product"));
            }
            if before == after || before.is_empty() {
                complaints.push(format!("{file}: a hunk without a change, or without a place"));
                continue;
            }
            let Some(text) = source(file) else {
                complaints.push(format!("{file}: no such file"));
                continue;
            };
            let lines: Vec<&str> = text.lines().collect();
            if !lines.windows(before.len()).any(|window| window == before) {
                complaints.push(format!("{file} no longer contains:\n{}", before.join("\n")));
            }
        }
        complaints
    }
}

/// The patches by name, in order.
fn patches() -> BTreeMap<String, String> {
    let entries = fs::read_dir(root().join("tests/mutants")).expect("the folder of the patches");
    let files = entries.map(|entry| entry.expect("a readable folder").path());
    files
        .filter(|path| path.extension().is_some_and(|e| e == "patch"))
        .map(|path| (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), read(&path)))
        .collect()
}

#[test]
fn every_planted_bug_fits_the_sources() {
    let rules = rules();
    let mut complaints = Vec::new();
    for (name, text) in patches() {
        let found = match Mutant::parse(&text) {
            Ok(mutant) => mutant.complaints(&rules, |file| fs::read_to_string(root().join(file)).ok()),
            Err(what) => vec![what],
        };
        complaints.extend(found.into_iter().map(|what| format!("{name}: {what}")));
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_rule_has_a_planted_bug() {
    let patches = patches();
    let mut missing = rules();
    assert!(missing.contains("P1") && missing.contains("S3"), "the rules were not found: {missing:?}");
    for (name, text) in &patches {
        let mutant = Mutant::parse(text).unwrap_or_else(|what| panic!("{name}: {what}"));
        mutant.rules.iter().for_each(|rule| _ = missing.remove(rule));
    }
    assert!(missing.is_empty(), "no bug breaks {missing:?}");
}

/// `make mutants MUTANT=` takes the name or the number.
#[test]
fn planted_bugs_are_numbered_from_one() {
    let patches = patches();
    for i in 1..=patches.len() {
        let named = patches.keys().filter(|name| name.starts_with(&format!("{i:02}-"))).count();
        assert_eq!(named, 1, "number {i}");
    }
    let names: BTreeSet<&str> = patches.keys().filter_map(|name| Some(name.split_once('-')?.1)).collect();
    assert_eq!(names.len(), patches.len(), "two bugs of one name");
}

/// Of both protocols: who drops one of the headers has to look for another bug that the model notices.
#[test]
fn the_model_must_notice_some() {
    let patches = patches();
    let mutants = patches.values().map(|text| Mutant::parse(text).expect("checked by another test"));
    let rules: BTreeSet<String> =
        mutants.filter(|mutant| mutant.model).flat_map(|mutant| mutant.rules).collect();
    assert!(rules.iter().any(|rule| rule.starts_with('P')), "{rules:?}");
    assert!(rules.iter().any(|rule| rule.starts_with('T')), "{rules:?}");
}

#[test]
fn a_patch_that_does_not_fit_is_named() {
    let rules = BTreeSet::from(["P1".to_string()]);
    let source = |file: &str| (file == "src/a.rs").then(|| "one\ntwo\nthree\n".to_string());
    let story = "word ".repeat(15);
    let patch = |rules: &str, file: &str, lines: &str| {
        format!("Rules: {rules}\n\n{story}\n\n--- a/{file}\n+++ b/{file}\n@@ -1,2 +1,2 @@\n{lines}\n")
    };
    let complaints = |text: &str| {
        Mutant::parse(text).unwrap_or_else(|what| panic!("{what}")).complaints(&rules, source).len()
    };
    assert_eq!(complaints(&patch("P1", "src/a.rs", " one\n-two\n+2")), 0);
    assert_eq!(complaints(&patch("P1", "src/a.rs", " one\n-three\n+3")), 1, "not in this order");
    assert_eq!(complaints(&patch("P1", "src/a.rs", " one\n two")), 1, "no change");
    assert_eq!(complaints(&patch("P1", "src/b.rs", "-one")), 1, "no such file");
    assert_eq!(complaints(&patch("P9", "src/a.rs", "-one")), 1, "no such rule");
    assert_eq!(complaints(&patch("", "src/a.rs", "-one")), 1, "no rule");
    assert_eq!(complaints(&patch("P1", "src/sim/world.rs", "-one")), 2, "not the product");
    assert_eq!(complaints(&patch("P1\nModel: yes", "src/a.rs", "-one\n+1")), 0);
    let model = |text: &str| Mutant::parse(text).map(|mutant| mutant.model);
    assert_eq!(model(&patch("P1\nModel: yes", "src/a.rs", "-one")), Ok(true));
    assert_eq!(model(&patch("P1", "src/a.rs", "-one")), Ok(false));
    assert!(model(&patch("P1\nModel: no", "src/a.rs", "-one")).is_err());
    assert!(model(&patch("P1\nModel: yes\nModel: yes", "src/a.rs", "-one")).is_err());
    let rules = BTreeSet::from(["T7".to_string()]);
    let forgets = Mutant::parse(&patch("T7\nModel: yes", "src/a.rs", "-one\n+1")).expect("a patch");
    assert_eq!(forgets.complaints(&rules, source), ["the model does not know these rules"]);
    assert!(Mutant::parse("Rules: P1\n\nshort\n\n--- a/src/a.rs\n").is_err());
    assert!(Mutant::parse(&format!("{story}\n\n{story}\n\n--- a/src/a.rs\n")).is_err());
    assert!(Mutant::parse(&format!("Rules: P1\n\n{story}\n")).is_err());
}
