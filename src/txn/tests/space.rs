//! What a client is told when servers have no space (T8).

use super::answers::{answered, outcomes, refused};
use super::*;

const FULL: Outcome = Outcome::Aborted(Reason::StorageFull);

/// Nothing of it was proposed anywhere, so it is over; and for a while nothing else is sent there.
#[test]
fn what_finds_no_space_is_aborted_and_reads_go_on() {
    let mut world = World::client();
    let out = world.turn([submit(1, 1, 2)]);
    let out = world.turn([refused(&out.send, S1, Refusal::StorageFull)]);
    assert_eq!(outcomes(&out), [(1, FULL)]);
    let read = Input::Submit { tag: 3, op: Op::Read(AccountId(1)) };
    let out = world.turn([submit(2, 1, 3), read, submit(4, 3, 4)]);
    assert_eq!(outcomes(&out), [(2, FULL)]);
    assert!(matches!(&out.send[..], [(S1, Request::Read { .. }), (S2, Request::Submit { .. })]), "{out:?}");
    let out = world.later(Duration::from_millis(250), [submit(5, 1, 2)]);
    assert_eq!(kinds(&out.send, S1).last(), Some(&"transfers"));
    assert_eq!(
        outcomes(&world.turn([answered(&out.send, S1, Status::Committed)])),
        [(5, Outcome::Committed)]
    );
}

/// S1 has locked an account for it already: a fence rules it out at S2, and only its answer is definite.
#[test]
fn what_was_taken_elsewhere_is_fenced_where_there_is_no_space() {
    let mut world = World::client();
    let sent = world.turn([submit(1, 1, 3)]);
    let out = world.turn([refused(&sent.send, S2, Refusal::StorageFull)]);
    assert_eq!((outcomes(&out), kinds(&out.send, S2).last()), (vec![], Some(&"fence")));
    let later = world.turn([answered(&sent.send, S1, Status::Yes)]);
    assert_eq!(outcomes(&later), []);
    let out = world.turn([answered(&out.send, S2, Status::Aborted(Reason::NoQuorum))]);
    assert_eq!(outcomes(&out), [(1, FULL)], "why it was ruled out is known here");
}

/// A copy was lost on its way, so the refusal of the next one says nothing; and when not even the fence finds space, the
/// client is not kept waiting.
#[test]
fn a_copy_that_may_have_been_proposed_leaves_it_unknown() {
    let mut world = World::client();
    world.turn([submit(1, 1, 2)]);
    world.turn([Input::Disconnected(S1)]);
    let out = world.turn([Input::Connected(S1)]);
    let out = world.turn([refused(&out.send, S1, Refusal::StorageFull)]);
    assert_eq!((outcomes(&out), kinds(&out.send, S1).last()), (vec![], Some(&"fence")));
    let out = world.turn([refused(&out.send, S1, Refusal::StorageFull)]);
    assert_eq!((outcomes(&out), out.send), (vec![(1, Outcome::Unknown)], vec![]));
    let out = world.later(Duration::from_millis(250), []);
    assert_eq!(kinds(&out.send, S1).last(), Some(&"fence"));
    let out = world.turn([answered(&out.send, S1, Status::Committed)]);
    assert_eq!(outcomes(&out), [(1, Outcome::Committed)]);
}

/// Outcomes that were refused for the company they were in go alone, at once.
#[test]
fn an_outcome_does_not_wait_for_space_for_others() {
    let mut world = World::client();
    let sent = world.turn([submit(1, 1, 3)]);
    world.turn([S1, S2].map(|server| answered(&sent.send, server, Status::Yes)));
    let out = world.turn([submit(2, 1, 2)]);
    assert_eq!(kinds(&out.send, S1), ["outcome", "transfers"]);
    world.turn([refused(&out.send, S1, Refusal::StorageFull)]);
    let out = world.later(Duration::from_millis(1), [submit(3, 1, 2)]);
    assert_eq!((outcomes(&out), kinds(&out.send, S1)), (vec![(3, FULL)], vec!["outcome"]));
}

/// A client without a session opens it where there is space.
#[test]
fn a_session_is_opened_elsewhere() {
    let mut world = World::new(Coordinator::new(TOPOLOGY, Timeouts::default(), START));
    let out = world.turn([submit(1, 1, 2), submit(2, 3, 4)]);
    assert_eq!(kinds(&out.send, S1), ["open"]);
    let out = world.turn([refused(&out.send, S1, Refusal::StorageFull)]);
    assert_eq!((outcomes(&out), kinds(&out.send, S2)), (vec![(1, FULL)], vec!["open"]));
}

/// The shard that issued a session has not even space to say so. The client of a named transfer is not kept waiting for that.
#[test]
fn a_named_transfer_does_not_wait_for_space() {
    let mut world = World::new(Coordinator::hosted(TOPOLOGY, Timeouts::default(), START));
    let named = Op::Named {
        id: TxnId { session: Session::new(ShardId(1), 7), seq: 1 },
        transfer: Transfer { from: AccountId(1), to: AccountId(3), amount: 1 },
    };
    let out = world.turn([Input::Submit { tag: 1, op: named }]);
    assert_eq!(kinds(&out.send, S1), ["touch"]);
    let out = world.turn([refused(&out.send, S1, Refusal::StorageFull)]);
    assert_eq!((outcomes(&out), out.send), (vec![(1, Outcome::Unknown)], vec![]));
    let out = world.later(Duration::from_millis(250), [Input::Submit { tag: 2, op: named }]);
    assert_eq!(kinds(&out.send, S1), ["touch"], "it may ask again");
}
