//! Import cycles between files.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use super::references::Imports;

/// One text per cycle, the shortest of each group of files; imports in `allowed` are left out, and reported if they no
/// longer exist.
pub(crate) fn problems(imports: &Imports, allowed: &[(&str, &str)]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut graph: Graph = BTreeMap::new();
    for (from, to) in imports {
        let kept = to.keys().filter(|to| !allowed.contains(&(from, to)));
        graph.insert(from, kept.map(String::as_str).collect());
    }
    for (from, to) in allowed {
        if !imports.get(*from).is_some_and(|imported| imported.contains_key(*to)) {
            problems.push(format!("allowed import is gone: {from} -> {to}: remove it from ALLOWED_IMPORTS"));
        }
    }
    // When a shortest cycle is found, its last import is removed, until none is left.
    while let Some(circle) = shortest(&graph) {
        let mut text = format!("import circle: {} -> {}", circle.join(" -> "), circle[0]);
        for (i, from) in circle.iter().enumerate() {
            let reference = &imports[*from][circle[(i + 1) % circle.len()]];
            let _ = write!(text, "\n    {from}:{}: {}", reference.line, reference.path);
        }
        problems.push(text);
        let last = circle[circle.len() - 1];
        graph.entry(last).or_default().remove(circle[0]);
    }
    problems
}

type Graph<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// A shortest cycle of the graph.
fn shortest<'a>(graph: &Graph<'a>) -> Option<Vec<&'a str>> {
    graph.keys().filter_map(|file| circle_through(graph, file)).min_by_key(Vec::len)
}

/// A shortest cycle through a file, beginning with it.
fn circle_through<'a>(graph: &Graph<'a>, file: &'a str) -> Option<Vec<&'a str>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([file]);
    while let Some(from) = queue.pop_front() {
        for to in graph.get(from).into_iter().flatten() {
            if *to == file {
                let mut circle = vec![from];
                while let Some(previous) = before.get(circle[circle.len() - 1]) {
                    circle.push(previous);
                }
                circle.reverse();
                return Some(circle);
            }
            if !before.contains_key(to) {
                before.insert(to, from);
                queue.push_back(to);
            }
        }
    }
    None
}
