//! Explores a configuration to its end and says what came of it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::node::fingerprint;
use super::rules::{Rule, Seen};
use super::state::{Action, Bounds, State};
use super::world::World;

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        self.initial()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.may_happen(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.after(state, action)
    }

    fn properties(&self) -> Vec<Property<World>> {
        macro_rules! unbroken {
            ($($rule:ident)*) => {
                vec![$(Property::always(Rule::$rule.name(), |_, s: &State| !s.has_broken(Rule::$rule))),*]
            };
        }
        let mut properties = unbroken!(P1 P2 P4 P5 B1 B2 T1 T2 T3 T5 T8 Assertions);
        properties
            .push(Property::always(Rule::T4.name(), |world: &World, s: &State| world.is_left_resolved(s)));
        properties
    }
}

impl World {
    /// T4, asked where nothing is left to happen, and for one in so many of the other states with everything in flight
    /// lost: it takes long.
    fn is_left_resolved(&self, state: &State) -> bool {
        if state.amount == 0 || !state.broken.is_empty() {
            return true;
        }
        let mut actions = Vec::new();
        self.may_happen(state, &mut actions);
        let lose = fingerprint(state).is_multiple_of(SAMPLE);
        (!actions.is_empty() || self.resolves(state, false)) && (!lose || self.resolves(state, true))
    }
}

/// How many states share one check of T4 with everything lost.
const SAMPLE: u64 = 64;

/// Whether everything is to be explored, or only as much as fits into every run of the tests.
pub fn is_full() -> bool {
    match std::env::var("MODEL").as_deref() {
        Ok("full") => true,
        Err(_) => false,
        Ok(other) => panic!("MODEL={other}: may be \"full\", or unset"),
    }
}

/// One for each core that the full run is meant for. The number of states is the same with any number of threads.
const THREADS: usize = 2;

/// Explores all states within the bounds, and panics unless all rules hold, everything that must happen does, and there
/// are exactly `expected` distinct states.
///
/// The checker ends early only when a rule breaks: the rules are properties that hold, so that it never has found an
/// example of each of its properties.
pub fn explore(bounds: Bounds, expected: usize) {
    let start = Instant::now();
    let must = bounds.must.clone();
    let title = bounds.name;
    println!("\n{title}\n  {}", describe(&bounds));
    let checker = World::new(bounds)
        .checker()
        .threads(THREADS)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let (states, transitions) = (checker.unique_state_count(), checker.state_count());
    let depth = checker.max_depth();
    let world = checker.model();
    let seen: Vec<(Seen, u64)> =
        must.iter().map(|s| (*s, world.seen[*s as usize].load(Ordering::Relaxed))).collect();
    println!(
        "  {states} distinct states, {transitions} transitions, depth {depth}, {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let mut failed = Vec::new();
    let discoveries = checker.discoveries();
    for rule in Rule::ALL {
        let Some(path) = discoveries.get(rule.name()) else {
            println!("  always     {}", rule.name());
            continue;
        };
        println!("  BROKEN     {}", rule.name());
        for (number, (state, action)) in path.clone().into_vec().into_iter().enumerate() {
            match action {
                Some(action) => println!("    {:3}  {}", number + 1, world.tell(&state, action)),
                None => println!("         {:?}", state.broken),
            }
        }
        failed.push(format!("broken: {}", rule.name()));
    }
    for (what, times) in seen {
        println!("  sometimes  {} ({times} transitions)", what.text());
        if times == 0 && failed.is_empty() {
            failed.push(format!("never happened: {}", what.text()));
        }
    }
    if failed.is_empty() && states != expected {
        failed.push(format!("{states} distinct states, where {expected} were expected"));
    }
    assert!(failed.is_empty(), "{title}: {}", failed.join("; "));
}

fn describe(bounds: &Bounds) -> String {
    let topology = bounds.topology;
    let mut text = format!("{} × {} servers; at most", topology.clusters, topology.servers_per_cluster);
    let b = bounds.budget;
    for (count, what) in [
        (b.campaigns, "campaigns"),
        (b.proposals, "proposals"),
        (b.probes, "probes"),
        (b.crashes, "crashes"),
        (b.duplicates, "duplicates"),
        (b.pauses, "pauses of servers"),
        (b.waits, "waits of the client"),
        (b.cuts, "cuts of the client's connections"),
        (b.deaths, "deaths of the coordinator"),
    ] {
        if count > 0 {
            text += &format!(" {count} {what},");
        }
    }
    text.trim_end_matches(',').to_string()
}

impl World {
    /// An action in words, for whoever reads a counterexample.
    fn tell(&self, state: &State, action: Action) -> String {
        match action {
            Action::Deliver { packet, again, fault } => {
                let copy = if again { "; a copy stays behind" } else { "" };
                let fault = fault.map_or(String::new(), |f| format!("; dies: {f:?}"));
                format!("arrives: {:?}{copy}{fault}", state.net[packet])
            }
            other => format!("{other:?}"),
        }
    }
}
