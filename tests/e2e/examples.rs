//! The programs in `examples/` that use a bank, run as their first lines say.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{eventually, temp};
use crate::process::Processes;

/// `cargo test` builds them beside the executable.
fn example(name: &str) -> Command {
    let built = Path::new(env!("CARGO_BIN_EXE_bank")).with_file_name("examples").join(name);
    assert!(built.exists(), "{} is not there; `cargo build --examples` makes it", built.display());
    Command::new(built)
}

fn output(mut command: Command) -> String {
    let ran = command.output().expect("it starts");
    assert!(ran.status.success(), "{command:?}: {ran:?}");
    String::from_utf8(ran.stdout).expect("text")
}

#[test]
fn examples_do_what_they_say() {
    let all = Processes::start(|text| text.replace("accounts = 30", "accounts = 600"));
    let mut transfer = example("transfer");
    transfer.args([&all.path, "1", "600", "101"]);
    let said = output(transfer);
    assert!(said.ends_with("insufficient-balance\naccount 1: 100 units\naccount 600: 100 units\n"), "{said}");
    let mut transfer = example("transfer");
    transfer.args([&all.path, "1", "600", "8"]);
    let said = output(transfer);
    assert!(said.ends_with(": committed\naccount 1: 92 units\naccount 600: 108 units\n"), "{said}");

    // Killed while it pays, and started again.
    let dir = temp();
    let notes = dir.path().join("notes").display().to_string();
    let resume = || {
        let mut command = example("resume");
        command.args([&all.path, &notes, "300"]);
        command
    };
    let mut first = resume().stdout(Stdio::null()).spawn().expect("it starts");
    eventually("some payments", || {
        let noted = std::fs::read_to_string(&notes).unwrap_or_default();
        (noted.lines().filter(|line| line.ends_with("committed")).count() >= 20).then_some(())
    });
    first.kill().expect("it runs");
    first.wait().expect("a child can be waited for");
    let said = output(resume());
    assert!(said.contains("of 300 payments were made before"), "{said}");
    // The transfer above went from the first of the senders to the last of the receivers.
    assert!(
        said.ends_with("300 payments are made; the receivers have 616 units more than the senders\n"),
        "{said}"
    );

    let mut batch = example("batch");
    batch.args([&all.path, "500"]);
    let said = output(batch);
    let count = |line: &str| line.split_whitespace().next().and_then(|word| word.parse::<usize>().ok());
    let (counts, took) = said.trim_end().rsplit_once('\n').expect("lines");
    assert_eq!(counts.lines().filter_map(count).sum::<usize>(), 500, "{said}");
    assert!(took.starts_with("500 transfers in ") && said.contains(" committed"), "{said}");
    all.audit();
}
