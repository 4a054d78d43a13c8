//! A disk that fails under a real process, at its n-th sync or write (S1): the server ends at once, answers for nothing
//! more, and says why. The two others go on, and it comes back from its directory.
//!
//! The calls fail by the hand of strace. Which file a call was about, and what the process did afterwards, stands in the
//! trace.

use std::path::Path;

use crate::common::{eventually, put, set_text, traced, whole_trace};
use crate::process::Processes;

/// Everything by which a server could tell others, or write.
const CALLS: &str = "trace=write,writev,sendto,sendmsg,pwrite64,pwritev,fsync,fdatasync";

/// Rows that wait for one another, so that each is a slot, and a group of records on every disk.
fn rows() -> Vec<String> {
    (0..60).map(|i| format!("({}, {}, 1)", i % 2 + 1, (i + 1) % 2 + 1)).collect()
}

/// The call that failed, with the path of its file; nothing that matters comes behind it.
fn failed_call(trace: &Path) -> String {
    let trace = eventually("the whole trace", || whole_trace(trace));
    let lines: Vec<&str> = trace.lines().collect();
    let at = lines.iter().position(|line| line.contains("(INJECTED)")).expect("a call failed");
    let (before, after) = lines.split_at(at);
    let call = |line: &&&str| line.split_whitespace().nth(1).unwrap_or_default().to_string();
    assert!(before.iter().any(|line| call(&line).starts_with("sendto(")), "it sends by another call");
    // P1: whatever it would say now stands on a write that failed. Standard error is for people.
    let told = after[1..]
        .iter()
        .map(|line| call(&line))
        .find(|call| call.contains('(') && !call.starts_with("write(2"));
    assert_eq!(told, None, "behind {}", lines[at]);
    // Another thread may have come in between, and the path stands where the call began.
    let thread = lines[at].split_whitespace().next();
    let begun = lines[..=at].iter().rev().find(|line| {
        line.split_whitespace().next() == thread && line.contains("(") && !line.contains("<... ")
    });
    begun.expect("the call began").to_string()
}

/// S2 runs with a disk whose `n`-th `call` fails, of a file that is called so.
fn a_call_fails(all: &mut Processes, call: &str, n: usize, file: &str) {
    let trace = all.dir.path().join(format!("trace-{call}-{n}"));
    let inject = format!("inject={call}:error=EIO:when={n}");
    all.kill(2);
    let command = traced(&all.command(2, "--format"), &trace, &["-y", "-s", "0", "-e", CALLS, "-e", &inject]);
    all.launch_as(2, command);
    all.listens(2);
    let some = put(all.dir.path(), "some.csv", &set_text(1, &all.topology(), &rows()));
    let mut running = all.running[1].take().expect("it was launched");
    eventually("it ends", || {
        // If it led, the outcome of a row may be unknown for now.
        let ran = all.run(&some);
        assert!(matches!(ran.code, Some(0 | 3)), "{ran:?}");
        running.has_ended().then_some(())
    });
    let ended = running.finish().with_code(1);
    let said = |part: &str| ended.err.contains(part);
    assert!(
        said("S2 stops for good, its disk failed") && said("the server has stopped for good"),
        "{}",
        ended.err
    );
    assert!(said(file) && said("Input/output error"), "{}", ended.err);
    let call = failed_call(&trace);
    assert!(call.contains(file), "{call}");

    // A majority needs nothing of it.
    eventually("the others elect a leader if they must", || {
        let told = all.run(&some).with_code(0).sets()[0]["results"].to_string();
        (told.matches("\"committed\"").count() == rows().len()).then_some(())
    });
    all.launch(2);
    all.listens(2);
    all.audit();
    all.agree();
}

/// So little is written here that no segment is made in advance: a turn writes a group, syncs it, and writes the mark.
fn three() -> Processes {
    Processes::start_clusters(1, |text| text)
}

#[test]
fn a_sync_that_fails_ends_the_server() {
    a_call_fails(&mut three(), "fdatasync", 15, "wal-00000001.seg");
}

#[test]
fn a_write_that_fails_ends_the_server() {
    let mut all = three();
    a_call_fails(&mut all, "pwrite64", 15, "wal-00000001.seg");
    a_call_fails(&mut all, "pwrite64", 16, "mark");
}
