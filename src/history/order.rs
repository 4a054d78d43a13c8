//! A directed graph that is kept free of cycles, and a total order of its nodes that respects it, while edges come and go.
//!
//! Source: D. Pearce and P. Kelly, "A Dynamic Topological Sort Algorithm for Directed Acyclic Graphs" (2006): a new edge
//! that points backwards moves only the nodes between its ends. Taking edges away never invalidates the order.

use std::collections::VecDeque;

/// What an edge stands for: nothing that could be undone, or a literal of the search.
pub type Tag = u32;
pub const FIXED: Tag = Tag::MAX;

/// The graph and its order.
pub struct Order {
    /// Outgoing and incoming edges of each node. The last ones are the youngest, so that undoing is popping.
    out: Vec<Vec<(u32, Tag)>>,
    inc: Vec<Vec<u32>>,
    position: Vec<u32>,
    at: Vec<u32>,
    /// Scratch: how the forward search came to a node.
    came: Vec<Option<(u32, Tag)>>,
    seen: Vec<bool>,
}

impl Order {
    /// Nodes without edges, in this order; `sequence` names every node from 0 on once.
    pub fn new(sequence: Vec<u32>) -> Order {
        let n = sequence.len();
        let mut position = vec![0; n];
        for (i, node) in sequence.iter().enumerate() {
            position[*node as usize] = i as u32;
        }
        Order {
            out: vec![Vec::new(); n],
            inc: vec![Vec::new(); n],
            position,
            at: sequence,
            came: vec![None; n],
            seen: vec![false; n],
        }
    }

    /// All nodes, in an order that every edge points along.
    pub fn sequence(&self) -> &[u32] {
        &self.at
    }

    pub fn position(&self, node: u32) -> u32 {
        self.position[node as usize]
    }

    /// Adds an edge, or says along which tags there is a way back already. `work` counts the nodes looked at.
    pub fn add(&mut self, from: u32, to: u32, tag: Tag, work: &mut u64) -> Result<(), Vec<Tag>> {
        let last = self.position(from);
        let first = self.position(to);
        if first < last {
            let (mut after, cycle) = self.search_forward(to, from, last);
            *work += after.len() as u64;
            if let Some(cycle) = cycle {
                return Err(cycle);
            }
            let mut before = self.search_backward(from, first);
            *work += before.len() as u64;
            let mut places: Vec<u32> =
                before.iter().chain(&after).map(|n| self.position[*n as usize]).collect();
            places.sort_unstable();
            before.sort_unstable_by_key(|n| self.position[*n as usize]);
            after.sort_unstable_by_key(|n| self.position[*n as usize]);
            for (node, place) in before.into_iter().chain(after).zip(places) {
                self.position[node as usize] = place;
                self.at[place as usize] = node;
            }
        }
        self.out[from as usize].push((to, tag));
        self.inc[to as usize].push(from);
        Ok(())
    }

    /// Takes back the youngest edge of these two nodes, which must be this one.
    pub fn remove(&mut self, from: u32, to: u32) {
        let out = self.out[from as usize].pop();
        let inc = self.inc[to as usize].pop();
        debug_assert!(out.map(|(n, _)| n) == Some(to) && inc == Some(from), "edges are undone in reverse");
    }

    /// Everything reachable from `start` up to position `last`; the tags of a shortest way to `goal` if there is one.
    fn search_forward(&mut self, start: u32, goal: u32, last: u32) -> (Vec<u32>, Option<Vec<Tag>>) {
        let mut reached = vec![start];
        let mut queue = VecDeque::from([start]);
        self.seen[start as usize] = true;
        let mut found = false;
        'search: while let Some(node) = queue.pop_front() {
            for &(next, tag) in &self.out[node as usize] {
                if self.position[next as usize] > last || self.seen[next as usize] {
                    continue;
                }
                self.seen[next as usize] = true;
                self.came[next as usize] = Some((node, tag));
                reached.push(next);
                queue.push_back(next);
                if next == goal {
                    found = true;
                    break 'search;
                }
            }
        }
        let mut tags = Vec::new();
        if found {
            let mut node = goal;
            while let Some((previous, tag)) = self.came[node as usize] {
                if tag != FIXED {
                    tags.push(tag);
                }
                node = previous;
            }
        }
        for node in &reached {
            self.seen[*node as usize] = false;
            self.came[*node as usize] = None;
        }
        (reached, found.then_some(tags))
    }

    fn search_backward(&mut self, start: u32, first: u32) -> Vec<u32> {
        let mut reached = vec![start];
        self.seen[start as usize] = true;
        let mut next = 0;
        while next < reached.len() {
            for &previous in &self.inc[reached[next] as usize] {
                if self.position[previous as usize] >= first && !self.seen[previous as usize] {
                    self.seen[previous as usize] = true;
                    reached.push(previous);
                }
            }
            next += 1;
        }
        for node in &reached {
            self.seen[*node as usize] = false;
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_move_nodes_and_cycles_are_named() {
        let mut order = Order::new(vec![0, 1, 2, 3]);
        let mut work = 0;
        order.add(3, 1, 7, &mut work).unwrap();
        assert!(order.position(3) < order.position(1));
        order.add(1, 0, FIXED, &mut work).unwrap();
        assert_eq!(order.add(0, 3, 9, &mut work), Err(vec![7]));
        order.remove(1, 0);
        order.add(0, 3, 9, &mut work).unwrap();
        assert_eq!(order.sequence().iter().filter(|n| **n != 2).collect::<Vec<_>>(), [&0, &3, &1]);
    }
}
