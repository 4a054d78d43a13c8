//! Every order in which reports may arrive, and what is lost on the way.

use super::*;

const WRONG: u64 = 666;
const RIGHT: u64 = 1;
const SLOT: Slot = Slot(8);

fn timeouts() -> Timeouts {
    Timeouts::default()
}

fn patience() -> Duration {
    timeouts().election() * PATIENCE
}

/// The servers of one cluster, and everything that they sent and nobody has received yet.
struct World {
    now: Time,
    servers: BTreeMap<NodeId, Comparison>,
    stopped: BTreeMap<NodeId, Divergence>,
    /// From, to, message, and whether it answers another one.
    wire: Vec<(NodeId, NodeId, Message, bool)>,
    /// Links that carry nothing, either way.
    cut: Vec<(u16, u16)>,
}

impl World {
    fn new(n: u16) -> World {
        let ids: Vec<NodeId> = (1..=n).map(NodeId).collect();
        let server = |id: &NodeId| (*id, Comparison::new(*id, ids.clone(), &timeouts(), 4));
        let servers = ids.iter().map(server).collect();
        World { now: Time(1_000_000), servers, stopped: BTreeMap::new(), wire: Vec::new(), cut: Vec::new() }
    }

    fn turn(&mut self, id: u16, act: impl FnOnce(&mut Comparison, &mut Output)) {
        let id = NodeId(id);
        let Some(server) = self.servers.get_mut(&id) else { return };
        let mut out = Output::default();
        act(server, &mut out);
        server.turn_end(self.now, &mut out);
        let cut = |to: NodeId| self.cut.iter().any(|c| *c == (id.0, to.0) || *c == (to.0, id.0));
        let sent = out.paxos.now.into_iter().filter(|(to, _)| !cut(*to));
        self.wire.extend(sent.map(|(to, m)| (id, to, m, false)));
        if let Some(divergence) = out.stop {
            self.servers.remove(&id);
            self.stopped.insert(id, divergence);
        }
    }

    fn apply(&mut self, id: u16, slot: Slot, digest: u64) {
        self.turn(id, |server, _| server.applied(slot, digest));
    }

    /// Hands over the n-th message on the wire.
    fn deliver(&mut self, n: usize) {
        let (from, to, message, _) = self.wire.remove(n);
        let Message::Digests(m) = message else { panic!("only digests are sent here") };
        let left = self.wire.len();
        self.turn(to.0, |server, out| server.hear(from, &m, out));
        self.wire[left..].iter_mut().for_each(|sent| sent.3 = true);
    }

    fn deliver_all(&mut self) {
        while !self.wire.is_empty() {
            self.deliver(0);
        }
    }

    /// Time passes, and everything that is sent meanwhile arrives at once.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.deliver_all();
        loop {
            let due = self.servers.iter().filter_map(|(id, s)| Some((s.next_deadline()?, id.0))).min();
            let Some((at, id)) = due.filter(|(at, _)| *at <= end) else { break };
            assert!(at >= self.now, "S{id} wanted a turn in the past");
            self.now = at;
            self.turn(id, |_, _| {});
            assert!(
                self.servers.get(&NodeId(id)).and_then(Comparison::next_deadline) != Some(at),
                "S{id} spins"
            );
            self.deliver_all();
        }
        self.now = end;
    }

    fn stopped(&self) -> Vec<u16> {
        self.stopped.keys().map(|id| id.0).collect()
    }

    fn silent(&self) -> Vec<u16> {
        self.servers.iter().filter(|(_, s)| s.is_silent()).map(|(id, _)| id.0).collect()
    }
}

/// A small source of choices, so that the orders of five servers can be sampled.
fn next(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*seed >> 33) as usize
}

/// Applies the slot everywhere with these digests, in the order of applying and receiving that `choose` leads to. If
/// `prompt`, what is said upon hearing something arrives at once, so that the orders can be counted.
fn run(digests: &[u64], prompt: bool, mut choose: impl FnMut(usize) -> usize) -> World {
    let mut world = World::new(digests.len() as u16);
    let mut left: Vec<u16> = (1..=digests.len() as u16).collect();
    while !left.is_empty() || !world.wire.is_empty() {
        if let Some(n) = world.wire.iter().position(|(_, _, _, answer)| prompt && *answer) {
            world.deliver(n);
            continue;
        }
        let n = choose(left.len() + world.wire.len());
        if n < left.len() {
            let id = left.remove(n);
            world.apply(id, SLOT, digests[usize::from(id) - 1]);
        } else {
            world.deliver(n - left.len());
        }
    }
    world
}

/// Every sequence of choices, one after the other: calls `each` until all are used up.
fn every_order(mut each: impl FnMut(&mut dyn FnMut(usize) -> usize)) -> usize {
    let mut path: Vec<(usize, usize)> = Vec::new();
    let mut runs = 0;
    loop {
        let mut depth = 0;
        each(&mut |options| {
            if depth == path.len() {
                path.push((0, options));
            }
            depth += 1;
            path[depth - 1].0
        });
        runs += 1;
        while path.last().is_some_and(|(taken, options)| taken + 1 == *options) {
            path.pop();
        }
        let Some(last) = path.last_mut() else { return runs };
        last.0 += 1;
    }
}

#[test]
fn of_three_the_odd_one_out_stops_and_nobody_else_in_every_order() {
    let runs = every_order(|choose| {
        let mut world = run(&[RIGHT, WRONG, RIGHT], true, choose);
        assert_eq!(world.stopped(), [2]);
        let stop = &world.stopped[&NodeId(2)];
        assert!(
            stop.outvoted && stop.others.iter().map(|(id, _)| id.0).eq([1, 3]) && stop.slot == SLOT,
            "{stop:?}"
        );
        world.pass(patience() * 2);
        assert_eq!((world.stopped(), world.silent()), (vec![2], vec![]));
        let confirmed: Vec<_> = world.servers.values().map(Comparison::confirmed).collect();
        assert_eq!(confirmed, [Some((SLOT, RIGHT)); 2]);
    });
    assert!(runs > 1000, "only {runs} orders");
}

#[test]
fn of_three_that_agree_nobody_stops_in_every_order() {
    every_order(|choose| {
        let mut world = run(&[RIGHT; 3], true, choose);
        assert_eq!((world.stopped(), world.silent()), (vec![], vec![]));
        world.pass(timeouts().heartbeat() * 3);
        assert!(world.servers.values().all(|s| s.confirmed() == Some((SLOT, RIGHT))));
        assert!(
            world.servers.values().all(|s| s.next_deadline().is_none()),
            "all know all: there is silence"
        );
    });
}

#[test]
fn of_three_that_all_differ_all_stop_in_every_order() {
    every_order(|choose| {
        let mut world = run(&[RIGHT, WRONG, 5], true, choose);
        // The last one to report may have stopped before its report reached all; its last words did.
        world.pass(timeouts().heartbeat() * 2);
        assert_eq!(world.stopped(), [1, 2, 3]);
        assert!(world.stopped.values().all(|stop| !stop.outvoted));
    });
}

#[test]
fn of_five_a_minority_stops_whatever_it_agrees_on() {
    let mut seed = 1;
    for round in 0..3000 {
        let mut digests = match round % 3 {
            0 => [RIGHT, RIGHT, RIGHT, RIGHT, WRONG],
            1 => [RIGHT, RIGHT, RIGHT, WRONG, WRONG],
            _ => [RIGHT, RIGHT, RIGHT, WRONG, 5],
        };
        digests.rotate_left(next(&mut seed) % 5);
        let mut world = run(&digests, false, |options| next(&mut seed) % options);
        world.pass(timeouts().heartbeat() * 3);
        let wrong: Vec<u16> = (1..=5).filter(|id| digests[usize::from(*id) - 1] != RIGHT).collect();
        assert_eq!(world.stopped(), wrong, "{digests:?}");
        assert!(world.stopped.values().all(|stop| stop.outvoted));
        world.pass(patience() * 2);
        assert_eq!((world.stopped(), world.silent()), (wrong, vec![]));
    }
}

#[test]
fn of_five_without_a_majority_all_stop() {
    let mut seed = 1;
    for _ in 0..1000 {
        let mut digests = [RIGHT, RIGHT, WRONG, WRONG, 5];
        digests.rotate_left(next(&mut seed) % 5);
        let mut world = run(&digests, false, |options| next(&mut seed) % options);
        world.pass(patience() + timeouts().heartbeat());
        assert_eq!(world.stopped(), [1, 2, 3, 4, 5]);
    }
}

/// Reports get lost, all of them for a while; what is repeated arrives.
#[test]
fn what_is_lost_is_said_again() {
    for digests in [[RIGHT, RIGHT, RIGHT], [RIGHT, RIGHT, WRONG]] {
        let mut world = World::new(3);
        for (id, digest) in (1..).zip(digests) {
            world.apply(id, SLOT, digest);
        }
        world.wire.clear();
        world.pass(timeouts().heartbeat());
        assert_eq!(world.stopped().len(), digests.iter().filter(|d| **d == WRONG).count());
        let right = world.servers.values().filter(|s| s.confirmed() == Some((SLOT, RIGHT))).count();
        assert_eq!(right, world.servers.len());
    }
}

#[test]
fn two_that_differ_while_the_third_is_down_wait_in_silence_and_stop() {
    let mut world = World::new(3);
    world.apply(1, SLOT, RIGHT);
    world.apply(2, SLOT, WRONG);
    world.pass(patience() - timeouts().heartbeat());
    assert_eq!((world.stopped(), world.silent()), (vec![], vec![1, 2]));
    world.pass(timeouts().heartbeat() * 2);
    assert_eq!(world.stopped(), [1, 2]);
    let stop = &world.stopped[&NodeId(1)];
    assert!(!stop.outvoted && stop.others.iter().map(|(id, _)| id.0).eq([2]), "{stop:?}");
}

#[test]
fn a_third_that_catches_up_in_time_settles_it() {
    for (digest, wrong) in [(RIGHT, 2), (WRONG, 1)] {
        let mut world = World::new(3);
        world.apply(1, SLOT, RIGHT);
        world.apply(2, SLOT, WRONG);
        world.pass(patience() - timeouts().heartbeat());
        world.apply(3, SLOT, digest);
        world.pass(patience());
        assert_eq!((world.stopped(), world.silent()), (vec![wrong], vec![]));
    }
}

/// S1 and S3 agree and cannot speak with each other; S2 is wrong and speaks with both.
#[test]
fn what_two_cannot_tell_each_other_the_third_tells_them() {
    let mut world = World::new(3);
    world.cut = vec![(1, 3)];
    for (id, digest) in [(1, RIGHT), (3, RIGHT), (2, WRONG)] {
        world.apply(id, SLOT, digest);
    }
    world.pass(patience() * 2);
    assert_eq!((world.stopped(), world.silent()), (vec![2], vec![]));
    assert!(world.servers.values().all(|s| s.confirmed() == Some((SLOT, RIGHT))));
}

/// S3 is wrong and hears only S2, and agreed slots follow each other so fast that nothing is ever repeated.
#[test]
fn under_load_news_gets_around_a_link_that_is_cut() {
    let mut world = World::new(3);
    world.cut = vec![(1, 3)];
    for (id, digest) in [(2, RIGHT), (3, WRONG), (1, RIGHT)] {
        world.apply(id, SLOT, digest);
    }
    world.deliver_all();
    assert_eq!((world.stopped(), world.silent()), (vec![3], vec![]));
}

/// The same with every message lost by chance: at most one of two that agree ever stops.
#[test]
fn one_wrong_server_never_stops_both_of_two_that_agree() {
    let mut seed = 7;
    let (mut both, mut one) = (0, 0);
    for _ in 0..2000 {
        let mut world = World::new(3);
        for (id, digest) in [(1, RIGHT), (2, WRONG), (3, RIGHT)] {
            world.apply(id, SLOT, digest);
        }
        let loss = [next(&mut seed) % 100, 85 + next(&mut seed) % 16][next(&mut seed) % 2];
        let end = world.now + patience() * 3;
        while world.now < end {
            while !world.wire.is_empty() {
                let n = next(&mut seed) % world.wire.len();
                if next(&mut seed) % 100 < loss {
                    world.wire.remove(n);
                } else {
                    world.deliver(n);
                }
            }
            world.now = world.now + timeouts().heartbeat() / 2;
            for id in 1..=3 {
                world.turn(id, |_, _| {});
            }
        }
        let healthy = world.stopped().iter().filter(|id| **id != 2).count();
        assert!(healthy < 2, "S2 took both others down");
        one += healthy;
        both += usize::from(world.stopped().len() == 2);
    }
    assert!(one > 0 && both > 0, "the schedule that this test is about never came up: {one}, {both}");
}

/// A server that is cut off right after it heard of a difference does not stop, and serves again.
#[test]
fn nobody_stops_over_what_a_majority_has_not_shown() {
    let mut world = World::new(3);
    world.apply(2, SLOT, WRONG);
    world.apply(1, SLOT, RIGHT);
    world.deliver(0);
    world.wire.clear();
    world.cut = vec![(1, 2), (1, 3)];
    assert_eq!(world.silent(), [1]);
    world.pass(patience() * 2);
    assert_eq!((world.stopped(), world.silent()), (vec![], vec![]));
    world.cut.clear();
    world.apply(3, SLOT, RIGHT);
    world.pass(patience());
    assert_eq!(world.stopped(), [2]);
}

/// S2 was wrong, starts again and is right; its new word replaces the old one.
#[test]
fn who_starts_again_may_be_right() {
    let mut world = World::new(3);
    world.apply(1, SLOT, RIGHT);
    world.apply(2, SLOT, WRONG);
    world.deliver_all();
    assert_eq!(world.silent(), [1, 2]);
    let ids = (1..=3).map(NodeId).collect();
    world.servers.insert(NodeId(2), Comparison::new(NodeId(2), ids, &timeouts(), 4));
    world.apply(2, SLOT, RIGHT);
    world.pass(patience() * 2);
    assert_eq!((world.stopped(), world.silent()), (vec![], vec![]));
    assert_eq!(world.servers[&NodeId(1)].confirmed(), Some((SLOT, RIGHT)));
}

#[test]
fn a_server_that_stood_still_gives_the_others_their_time_anew() {
    let mut world = World::new(3);
    world.apply(1, SLOT, RIGHT);
    world.apply(2, SLOT, WRONG);
    world.deliver_all();
    world.servers.remove(&NodeId(2));
    world.now = world.now + patience() * 3;
    world.turn(1, |server, _| server.resume());
    assert_eq!((world.stopped(), world.silent()), (vec![], vec![1]));
}

#[test]
fn a_difference_names_the_slots_between_which_it_began() {
    let mut world = World::new(3);
    for (slot, digest) in [(Slot(4), RIGHT), (Slot(5), RIGHT), (Slot(8), WRONG)] {
        for id in 1..=3 {
            world.apply(id, slot, if id == 3 { digest } else { RIGHT });
        }
        world.deliver_all();
    }
    let text = world.stopped[&NodeId(3)].to_string();
    let begin = "P4: the state of S3 differs from that of S1 and S2 since one of the slots 5 to 8";
    assert!(text.starts_with(begin), "{text}");
}

#[test]
fn one_server_alone_agrees_with_itself() {
    let mut world = World::new(1);
    world.apply(1, SLOT, RIGHT);
    assert_eq!(world.servers[&NodeId(1)].confirmed(), Some((SLOT, RIGHT)));
    assert_eq!(world.servers[&NodeId(1)].next_deadline(), None);
}

/// What is kept is bounded, whatever others say. A server that lags compares with what they said when they were there:
/// otherwise nothing that it does would ever be confirmed while it lags.
#[test]
fn a_server_that_lags_compares_with_what_others_reported_before() {
    let mut world = World::new(3);
    for n in 1..=100 {
        world.apply(1, Slot(4 * n), n);
        world.apply(2, Slot(4 * n), n);
    }
    world.deliver_all();
    let reports = Reports::from([(NodeId(2), 0)]);
    for slot in [Slot(0), Slot(401), Slot(3)] {
        let m = Digests { slot, reports: reports.clone(), asks: true };
        world.turn(3, |server, out| server.hear(NodeId(2), &m, out));
    }
    let stranger = Digests { slot: Slot(404), reports, asks: true };
    world.turn(3, |server, out| server.hear(NodeId(9), &stranger, out));
    let kept: Vec<usize> = world.servers.values().map(|s| s.views.len()).collect();
    assert_eq!(kept, [KEPT, KEPT, 100]);
    for n in 1..=100 {
        world.apply(3, Slot(4 * n), if n < 97 { n } else { WRONG });
        let Some(server) = world.servers.get(&NodeId(3)) else { break };
        assert_eq!(server.confirmed(), Some((Slot(4 * n), n)));
        assert!(server.views.len() <= 100 - n as usize + KEPT);
    }
    assert_eq!(world.stopped(), [3]);
    assert_eq!(world.stopped[&NodeId(3)].agreed, Some(Slot(4 * 96)));
    assert_eq!(world.stopped[&NodeId(3)].slot, Slot(4 * 97));
    for n in 1000..5000 {
        let m = Digests { slot: Slot(4 * n), reports: Reports::from([(NodeId(2), n)]), asks: false };
        world.turn(1, |server, out| server.hear(NodeId(2), &m, out));
    }
    assert_eq!(world.servers[&NodeId(1)].views.len(), KEPT + AHEAD);
}

/// S3 agrees with S1 at a later slot, and S1 never hears what it had at the earlier one, as when S3 started again since.
/// It is S2 that is wrong, and S3 had stopped over that already: S1 followed it, and nobody was left.
#[test]
fn what_a_majority_agrees_on_later_settles_what_differed_before() {
    let mut world = World::new(3);
    world.apply(1, Slot(4), RIGHT);
    let wrong = Digests { slot: Slot(4), reports: Reports::from([(NodeId(2), WRONG)]), asks: false };
    world.turn(1, |server, out| server.hear(NodeId(2), &wrong, out));
    assert!(world.servers[&NodeId(1)].is_silent());
    world.apply(1, Slot(8), RIGHT);
    let right = Digests { slot: Slot(8), reports: Reports::from([(NodeId(3), RIGHT)]), asks: false };
    world.turn(1, |server, out| server.hear(NodeId(3), &right, out));
    assert!(!world.servers[&NodeId(1)].is_silent());
    // S2 shows exactly what S1 knows of the first slot, as long as S1 waits at all.
    let shown = Reports::from([(NodeId(1), RIGHT), (NodeId(2), WRONG)]);
    let shown = Digests { slot: Slot(4), reports: shown, asks: false };
    for _ in 0..2 {
        world.turn(1, |server, out| server.hear(NodeId(2), &shown, out));
        world.now = world.now + patience();
    }
    world.turn(1, |_, _| ());
    assert!(world.stopped.is_empty());
}
