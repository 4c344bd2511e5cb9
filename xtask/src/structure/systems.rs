//! Code that knows which system it runs on, outside the one folder for it.

use super::sources::Sources;

/// The folder.
const PLACE: &str = "crates/elapid-kernels/src/os/";

/// What such code has in it.
const SIGNS: [&str; 9] = [
    "cfg(unix",
    "cfg(not(unix",
    "cfg(windows",
    "cfg(not(windows",
    "target_os",
    "libc::",
    "rustix::",
    "std::os::",
    "\"/proc/",
];

/// How a module of tests begins.
const TESTS: [&str; 2] = ["\n#[cfg(test)]\nmod tests {", "\n#[cfg(all(test, unix))]\nmod test"];

/// One text per line. Tests may know their system: a module of tests, which ends a file, and files of tests.
pub(crate) fn problems(sources: &Sources) -> Vec<String> {
    let of_crates = |path: &str| path.starts_with("crates/") && path.contains("/src/") && !path.starts_with(PLACE);
    let mut problems = Vec::new();
    for (path, source) in &sources.files {
        if !of_crates(path) || path.ends_with("tests.rs") || path.contains("/tests/") || source.syntax.is_none() {
            continue;
        }
        let tests = TESTS.iter().filter_map(|tests| source.text.find(tests)).min();
        for (number, line) in source.text[..tests.unwrap_or(source.text.len())].lines().enumerate() {
            if let Some(sign) = SIGNS.iter().find(|sign| line.contains(**sign)) {
                problems.push(format!("{path}:{}: `{sign}`: only {PLACE} knows the system", number + 1));
            }
        }
    }
    problems
}
