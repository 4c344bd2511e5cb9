//! Which file imports which: by `use`, and by paths in types, bodies and macro calls.

use std::collections::BTreeMap;

use anyhow::Result;
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItemFn, Item, ItemUse, Macro, Path, Visibility};

use super::modules::{Modules, Target, attributes, imports as imports_of, is_test, line};
use super::sources::Sources;

/// By importing file and imported file: where, and what.
pub(crate) type Imports = BTreeMap<String, BTreeMap<String, Reference>>;

/// The first place where a file refers to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) line: usize,
    pub(crate) path: String,
}

/// The imports of every crate. Using a re-export counts as an import of the original file, not of the re-exporting one.
pub(crate) fn imports(sources: &Sources) -> Result<Imports> {
    let mut imports = Imports::new();
    for root in sources.files.keys().filter(|path| is_root(path)) {
        let modules = Modules::of_crate(sources, root)?;
        for (id, module) in modules.all.iter().enumerate() {
            let mut paths = Paths { found: Vec::new() };
            for item in module.items {
                // A module is visited separately.
                if !matches!(item, Item::Mod(_)) {
                    paths.visit_item(item);
                }
            }
            for (path, line) in paths.found {
                for target in modules.resolve(id, &path) {
                    // Naming a module is not an import; using its items is.
                    let Target::Item(of) = target else { continue };
                    let file = &modules.all[of].file;
                    if *file != module.file {
                        let reference = Reference { line, path: path.join("::") };
                        let known = imports.entry(module.file.clone()).or_default();
                        let first = known.entry(file.clone()).or_insert_with(|| reference.clone());
                        if line < first.line {
                            *first = reference;
                        }
                    }
                }
            }
        }
    }
    Ok(imports)
}

/// `crates/NAME/src/lib.rs`, `crates/NAME/src/main.rs`, `xtask/src/main.rs`.
fn is_root(path: &str) -> bool {
    ["/src/lib.rs", "/src/main.rs"].iter().any(|end| path.ends_with(end))
}

/// Paths of a module outside its tests, with their lines.
struct Paths {
    found: Vec<(Vec<String>, usize)>,
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        if !attributes(item).is_some_and(is_test) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if item.leading_colon.is_none() {
            // A glob is resolved by the names used through it.
            let named = imports_of(&item.tree).into_iter().filter(|import| import.name.is_some());
            self.found.extend(named.map(|import| (import.path, import.line)));
        }
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.leading_colon.is_none()
            && let Some(first) = path.segments.first()
        {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.found.push((segments, line(&first.ident)));
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.visit_tokens(call.tokens.clone());
    }

    /// `pub(in crate::layers)` and attributes name items without using them.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

impl Paths {
    /// Paths among the arguments of a macro call: `name::name::…`, not after a dot.
    fn visit_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut first_line = 0;
        let mut colons = 0;
        let mut after_dot = false;
        for token in tokens {
            match &token {
                TokenTree::Ident(name) => {
                    if colons < 2 {
                        self.end_of_path(&mut path, first_line);
                        first_line = line(name);
                    }
                    if !(path.is_empty() && (after_dot || colons == 2)) {
                        path.push(name.to_string());
                    }
                    (colons, after_dot) = (0, false);
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Punct(punct) => after_dot = punct.as_char() == '.',
                TokenTree::Group(group) => {
                    after_dot = false;
                    self.end_of_path(&mut path, first_line);
                    self.visit_tokens(group.stream());
                }
                TokenTree::Literal(_) => after_dot = false,
            }
            self.end_of_path(&mut path, first_line);
            colons = 0;
        }
        self.end_of_path(&mut path, first_line);
    }

    fn end_of_path(&mut self, path: &mut Vec<String>, line: usize) {
        if !path.is_empty() {
            self.found.push((std::mem::take(path), line));
        }
    }
}
