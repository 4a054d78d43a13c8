//! Threads that keep to one core each.
//!
//! A server's turn on a single transfer takes some ten microseconds between two waits. Where more servers than cores share a
//! machine, a scheduler that treats them like anything else does two things to such turns: it lets the follower that a leader
//! has just written to interrupt that leader before it has written to the next one, and it leaves threads queued behind each
//! other on one core while another is idle, as it moves only what pays for the move. So a thread that is told to keeps to one
//! core, in turns with the others, and does not interrupt (`SCHED_BATCH`: whoever wakes up waits until the one that runs
//! waits, or has had a time slice). That is for machines that serve the bank alone: beside somebody else's busy thread on its
//! core, a server now waits for a time slice of it.

use std::io;
use std::thread::{Builder, JoinHandle};

use crossbeam::channel::bounded;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Starts a thread; with `turn`, one that keeps to a core: of those that this process may use, the one whose turn it is.
///
/// # Errors
///
/// The system has no room for it, or does not let it keep to a core.
pub fn spawn<T: Send + 'static>(
    name: &str,
    turn: Option<usize>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<Option<T>>> {
    let (tell, told) = bounded(1);
    let thread = Builder::new().name(name.into()).spawn(move || {
        let kept = turn.map_or(Ok(()), keep_to);
        // What it was to run with is free again before anybody hears that it does not.
        let run = kept.is_ok().then_some(run);
        // Whoever started it waits for this.
        let _ = tell.send(kept);
        run.map(|run| run())
    })?;
    let named = |e| io::Error::other(format!("it cannot keep to a core: {e}"));
    told.recv().map_err(io::Error::other)?.map_err(named)?;
    Ok(thread)
}

/// From now on this thread runs on one core only, and interrupts nobody there.
fn keep_to(turn: usize) -> io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let Some(core) = cores.get(turn % cores.len().max(1)) else {
        return Err(io::Error::other("this process may use no core"));
    };
    let mut only = CpuSet::new();
    only.set(*core);
    sched_setaffinity(None, &only)?;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to parameters that live until the call returns, which is about the calling thread.
    match unsafe {
        libc::pthread_setschedparam(libc::pthread_self(), libc::SCHED_BATCH, &raw const parameters)
    } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn where_it_runs() -> (Vec<usize>, i32) {
        let allowed = sched_getaffinity(None).expect("the cores of a thread");
        let (mut policy, mut parameters) = (0, libc::sched_param { sched_priority: 0 });
        // SAFETY: the pointers are to variables that live until the call returns, which is about the calling thread.
        let error = unsafe {
            libc::pthread_getschedparam(libc::pthread_self(), &raw mut policy, &raw mut parameters)
        };
        assert_eq!(error, 0);
        ((0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect(), policy)
    }

    #[test]
    fn threads_keep_to_the_cores_of_this_process_in_turns() {
        let (all, policy) = where_it_runs();
        for turn in 0..all.len() + 1 {
            let thread = spawn("one", Some(turn), where_it_runs).expect("a thread");
            let found = thread.join().expect("no panic");
            assert_eq!(found, Some((vec![all[turn % all.len()]], libc::SCHED_BATCH)));
        }
        let free = spawn("free", None, where_it_runs).expect("a thread").join().expect("no panic");
        assert_eq!(free, Some((all, policy)), "nobody else is touched");
    }
}
