//! Files and functions that are too long to read at one sitting.

use syn::visit::{self, Visit};
use syn::{Attribute, Block, ImplItemFn, ItemFn, Signature, TraitItemFn};

use super::sources::{Source, Sources};

/// Lines of a file.
const FILE: usize = 700;
/// Lines of a function, from `fn` to its last brace.
const FUNCTION: usize = 60;
/// The beginning of the reason for a longer function: a comment above it, or first in its body.
const REASON: &str = "// Long:";

/// One text per file and function that is too long.
pub(crate) fn problems(sources: &Sources) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, source) in &sources.files {
        let lines = source.text.lines().count();
        if lines > FILE {
            problems.push(format!("{path}: {lines} lines, more than {FILE}: make it two"));
        }
        for (line, name, lines) in long_functions(source) {
            problems.push(format!(
                "{path}:{line}: `{name}` has {lines} lines, more than {FUNCTION}: shorten it, or write `{REASON} why` above it"
            ));
        }
    }
    problems
}

/// Line, name and length of long functions without a reason.
fn long_functions(source: &Source) -> Vec<(usize, String, usize)> {
    let Some(syntax) = &source.syntax else { return Vec::new() };
    let mut functions = Functions { lines: source.text.lines().collect(), long: Vec::new() };
    functions.visit_file(syntax);
    functions.long
}

struct Functions<'a> {
    lines: Vec<&'a str>,
    long: Vec<(usize, String, usize)>,
}

impl Functions<'_> {
    fn add(&mut self, attributes: &[Attribute], signature: &Signature, body: &Block) {
        let start = signature.fn_token.span.start().line;
        let lines = body.brace_token.span.close().start().line + 1 - start;
        if lines > FUNCTION && !self.has_reason(attributes, start, body) {
            self.long.push((start, signature.ident.to_string(), lines));
        }
    }

    /// Whether there is a reason above the function, among its attributes, or first in its body.
    fn has_reason(&self, attributes: &[Attribute], start: usize, body: &Block) -> bool {
        let first = attributes.first().map_or(start, |attribute| attribute.pound_token.span.start().line);
        let comments_above =
            self.lines[..first - 1].iter().rev().take_while(|line| line.trim().starts_with("//")).count();
        let open = body.brace_token.span.open().start().line;
        let comments_in = self.lines[open..].iter().take_while(|line| line.trim().starts_with("//")).count();
        self.lines[first - 1 - comments_above..open + comments_in].iter().any(|line| line.trim().starts_with(REASON))
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.add(&function.attrs, &function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.add(&function.attrs, &function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        if let Some(body) = &function.default {
            self.add(&function.attrs, &function.sig, body);
        }
        visit::visit_trait_item_fn(self, function);
    }
}
