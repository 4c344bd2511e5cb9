use super::*;

/// The problems of a repository of these files.
fn problems_of(files: &[(&str, &str)], allowed: &[(&str, &str)]) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    problems(&Sources::read(root.path()).unwrap(), allowed).unwrap()
}

/// The first lines of the problems of a crate of these files.
fn problems_of_crate(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<_> = files.iter().map(|(path, text)| (format!("c/src/{path}"), *text)).collect();
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    problems_of(&files, &[]).iter().map(|text| text.lines().next().unwrap().replace("c/src/", "")).collect()
}

#[test]
fn a_circle_is_a_chain_of_files_with_the_lines_that_import() {
    let files = [
        ("c/src/lib.rs", "mod a;\nmod b;\nmod c;"),
        ("c/src/a.rs", "\nuse crate::b::B;\npub struct A(B);"),
        ("c/src/b.rs", "pub struct B(super::c::C);"),
        ("c/src/c.rs", "use crate::{a::{self, A}};\npub struct C(Box<A>, Option<Box<a::A>>);"),
    ];
    let circle = "import circle: c/src/a.rs -> c/src/b.rs -> c/src/c.rs -> c/src/a.rs\n    c/src/a.rs:2: crate::b::B\n    \
                  c/src/b.rs:1: super::c::C\n    c/src/c.rs:1: crate::a::A";
    assert_eq!(problems_of(&files, &[]), [circle]);
    assert_eq!(problems_of(&files, &[("c/src/c.rs", "c/src/a.rs")]), [""; 0]);
}

#[test]
fn an_allowed_import_that_is_gone_is_named() {
    let problems = problems_of(&[("c/src/lib.rs", "")], &[("c/src/a.rs", "c/src/b.rs")]);
    assert_eq!(problems, ["allowed import is gone: c/src/a.rs -> c/src/b.rs: remove it from ALLOWED_IMPORTS"]);
}

#[test]
fn a_folder_that_reexports_its_files_is_no_circle() {
    let files = [
        ("lib.rs", "pub mod op;\npub use op::{Args, run};"),
        ("op/mod.rs", "mod args;\nmod run;\npub use args::Args;\npub use run::*;"),
        ("op/args.rs", "pub struct Args;"),
        ("op/run.rs", "use super::Args;\npub fn run(_: Args, _: crate::Args, _: crate::op::Args) {}"),
    ];
    assert_eq!(problems_of_crate(&files), [""; 0]);
}

#[test]
fn a_folder_that_defines_what_its_files_import_is_a_circle() {
    let files = [
        ("lib.rs", "pub mod op;"),
        ("op/mod.rs", "mod run;\npub use run::run;\npub struct Args;"),
        ("op/run.rs", "use super::Args;\npub fn run(_: Args) {}"),
    ];
    assert_eq!(problems_of_crate(&files), ["import circle: op/mod.rs -> op/run.rs -> op/mod.rs"]);
}

#[test]
fn paths_in_bodies_macro_calls_and_through_globs_are_imports() {
    for body in [
        "fn b() { crate::a::f() }",
        "use crate::a;\nfn b() { a::f() }",
        "use crate::*;\nfn b() { a::f() }",
        "use super::a::*;\nfn b() { f() }",
        "fn b() { assert!(x.a == [1, crate::a::f()]) }",
        "fn b() { use crate::a::f as g; g() }",
        "fn b(_: crate::a::A<u8>) {}",
        "mod inner { pub(in crate::b) fn b() { super::super::a::A::new() } }",
    ] {
        let files = [
            ("lib.rs", "mod a;\nmod b;"),
            ("a.rs", "use crate::b::B;\npub fn f() {}\npub struct A<T>(T);"),
            ("b.rs", &format!("{body}\npub struct B;")),
        ];
        assert_eq!(problems_of_crate(&files), ["import circle: a.rs -> b.rs -> a.rs"], "{body}");
    }
}

#[test]
fn tests_visibilities_and_modules_by_name_are_no_imports() {
    for body in [
        "#[cfg(test)]\nmod tests { use crate::a::f; }",
        "#[cfg(test)]\nmod tests;",
        "#[cfg(all(test, unix))]\nfn b() { crate::a::f() }",
        "struct S;\nimpl S { #[cfg(test)] fn b() { crate::a::f() } }",
        "pub(in crate::a) fn b() {}",
        "use crate::a;",
        "use std::a::f;\nfn b(a: u8) { dbg!(a.f()) }",
        "/// [`crate::a::f`]\nfn b() {}",
    ] {
        let files = [
            ("lib.rs", "mod a;\nmod b;"),
            ("a.rs", "use crate::b::B;\npub fn f() {}"),
            ("b.rs", &format!("{body}\nstruct B;")),
        ];
        assert_eq!(problems_of_crate(&files), [""; 0], "{body}");
    }
}

#[test]
fn a_module_and_a_function_may_share_a_name() {
    let files = [
        ("lib.rs", "mod scan;\npub use scan::scan;\nmod other;"),
        ("scan.rs", "use crate::other::g;\npub fn scan() {}"),
        ("other.rs", "pub fn g() { crate::scan(); }"),
    ];
    assert_eq!(problems_of_crate(&files), ["import circle: other.rs -> scan.rs -> other.rs"]);
}

#[test]
fn a_long_function_wants_a_reason_beside_it() {
    let body = "    x();\n".repeat(59);
    let long = [
        format!("fn f() {{\n{body}}}"),
        format!("struct S;\nimpl S {{\n/// Docs.\n#[inline]\nfn f() {{\n// Why not.\n{body}}}\n}}"),
        format!("#[cfg(test)]\nmod tests {{\n// Long: another.\n\n#[test]\nfn f() {{\n{body}}}\n}}"),
    ];
    for text in &long {
        let longer = text.replacen("x();", "x();\n    x();", 1);
        let found = problems_of_crate(&[("lib.rs", &longer)]);
        assert!(found.len() == 1 && found[0].contains("`f` has 6"), "{longer}\n{found:?}");
    }
    let reasons = [
        format!("// Long: a table.\nfn f() {{\n    x();\n{body}}}"),
        format!("/// Docs.\n// Long: a table,\n// all of it.\n#[inline]\nfn f() {{\n    x();\n{body}}}"),
        format!("fn f(\n    a: u8,\n) {{\n    // Why it is so.\n    // Long: a table.\n    x();\n{body}}}"),
        format!("trait T {{\n// Long: a table.\nfn f() {{\n    x();\n{body}}}\n}}"),
    ];
    for text in reasons {
        assert_eq!(problems_of_crate(&[("lib.rs", &text)]), [""; 0], "{text}");
    }
    assert_eq!(problems_of_crate(&[("lib.rs", &long[0])]).len(), 1, "60 lines and one");
    assert_eq!(problems_of_crate(&[("lib.rs", &long[0].replacen("    x();\n", "", 1))]), [""; 0], "60 lines");
}

#[test]
fn a_long_file_is_named_whatever_its_language() {
    for file in ["a.rs", "a.cu", "a.py"] {
        assert_eq!(problems_of(&[(file, &"//\n".repeat(700))], &[]), [""; 0]);
        assert_eq!(
            problems_of(&[(file, &"//\n".repeat(701))], &[]),
            [format!("{file}: 701 lines, more than 700: make it two")]
        );
    }
}

#[test]
fn a_module_beside_its_folder_is_named() {
    let files = [("lib.rs", "mod a;"), ("a.rs", "mod b;"), ("a/b.rs", "")];
    assert_eq!(problems_of_crate(&files), ["a.rs is beside a/: move it to a/mod.rs"]);
}

#[test]
fn paths_of_the_map_exist() {
    let map = "# Map\n```\ncrates/\n  c/     the crate\n  d/     gone\ndocs/\n```\n`crates/c/src/lib.rs`, `src/lib.rs`, `lib.rs`, \
               `crates/<crate>/src`\n`gone.rs`, `crates/c/gone`, `docs/<op>.md`\n`config.json`, `step-N/`, `/tmp/a`, `a::b`\n\
               [the map](ARCHITECTURE.md#map), [gone](gone.md), [there](https://there.md)";
    let files = [("docs/ARCHITECTURE.md", map), ("crates/c/src/lib.rs", "")];
    let gone = [(5, "crates/d"), (9, "gone.rs"), (9, "crates/c/gone"), (11, "gone.md")];
    assert_eq!(problems_of(&files, &[]), gone.map(|(line, path)| format!("docs/ARCHITECTURE.md:{line}: no `{path}`")));
}

#[test]
fn only_one_folder_knows_the_system() {
    let code = "#[cfg(unix)]\nfn f() {}\n";
    let test = "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    #[cfg(unix)]\n    #[test]\n    fn f() {}\n}\n";
    let files = [
        ("crates/c/src/a.rs", code),
        ("crates/c/src/b.rs", test),
        ("crates/c/src/tests.rs", code),
        ("crates/elapid-kernels/src/os/mod.rs", code),
    ];
    let problems = problems_of(&files, &[]);
    let of_systems: Vec<_> = problems.iter().filter(|text| text.contains("knows the system")).collect();
    assert_eq!(of_systems, ["crates/c/src/a.rs:1: `cfg(unix`: only crates/elapid-kernels/src/os/ knows the system"]);
}
