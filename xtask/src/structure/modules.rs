//! The modules of a crate outside its tests, the names in each, and the file that a path leads to.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use syn::{Attribute, Ident, Item, UseTree};

use super::sources::Sources;

/// A crate's modules; the first is its root.
pub(crate) struct Modules<'a> {
    pub(crate) all: Vec<Module<'a>>,
}

/// A module: a file, or a part of one in braces.
pub(crate) struct Module<'a> {
    pub(crate) file: String,
    pub(crate) items: &'a [Item],
    parent: Option<usize>,
    /// What a name stands for; several if a module and a function share it.
    names: BTreeMap<String, Vec<Name>>,
    /// `use PATH::*`.
    globs: Vec<Vec<String>>,
}

#[derive(Clone)]
enum Name {
    /// Something that the module itself defines.
    Item,
    Module(usize),
    Import(Vec<String>),
}

/// What a path leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Something that this module defines.
    Item(usize),
    Module(usize),
}

/// A path that a `use` item imports, the name that it gets, and its line; a glob has no name.
pub(crate) struct Import {
    pub(crate) path: Vec<String>,
    pub(crate) name: Option<String>,
    pub(crate) line: usize,
}

impl<'a> Modules<'a> {
    /// The crate with this root file.
    pub(crate) fn of_crate(sources: &'a Sources, root: &str) -> Result<Self> {
        let mut modules = Self { all: Vec::new() };
        let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
        modules.add_file(sources, root, folder, None)?;
        Ok(modules)
    }

    /// Adds the module that a file is; its child modules are files in `folder`.
    fn add_file(&mut self, sources: &'a Sources, file: &str, folder: &str, parent: Option<usize>) -> Result<usize> {
        let syntax = sources.files.get(file).and_then(|source| source.syntax.as_ref());
        let Some(syntax) = syntax else { bail!("`{file}` is no Rust file") };
        self.add(sources, file, folder, &syntax.items, parent)
    }

    fn add(
        &mut self,
        sources: &'a Sources,
        file: &str,
        folder: &str,
        items: &'a [Item],
        parent: Option<usize>,
    ) -> Result<usize> {
        let id = self.all.len();
        self.all.push(Module { file: file.to_owned(), items, parent, names: BTreeMap::new(), globs: Vec::new() });
        for item in items {
            if attributes(item).is_some_and(is_test) {
                continue;
            }
            match item {
                Item::Mod(module) => {
                    let name = module.ident.to_string();
                    let child_folder = format!("{folder}/{name}");
                    let child = match &module.content {
                        Some((_, items)) => self.add(sources, file, &child_folder, items, Some(id))?,
                        None => {
                            let candidates = [format!("{child_folder}.rs"), format!("{child_folder}/mod.rs")];
                            let Some(child) = candidates.iter().find(|path| sources.files.contains_key(*path)) else {
                                bail!("`{file}`: no file of module `{name}`; a `#[path]` is not followed");
                            };
                            self.add_file(sources, child, &child_folder, Some(id))?
                        }
                    };
                    self.all[id].define(&module.ident, Name::Module(child));
                }
                Item::Use(item) => self.all[id].import(&item.tree),
                item => {
                    if let Some(name) = defined_name(item) {
                        self.all[id].define(name, Name::Item);
                    }
                }
            }
        }
        Ok(id)
    }

    /// The target of `path` from a module; nothing if it leaves the crate.
    pub(crate) fn resolve(&self, from: usize, path: &[String]) -> Vec<Target> {
        self.resolve_path(from, path, &mut Vec::new())
    }

    fn resolve_path(&self, from: usize, path: &[String], open: &mut Vec<(usize, String)>) -> Vec<Target> {
        let mut module = from;
        let mut rest = path;
        let mut anchored = false;
        while let Some((first, tail)) = rest.split_first() {
            match (first.as_str(), anchored) {
                ("crate", false) => module = 0,
                ("self", _) => {}
                ("super", _) => match self.all[module].parent {
                    Some(parent) => module = parent,
                    None => return Vec::new(),
                },
                _ => break,
            }
            (rest, anchored) = (tail, true);
        }
        let mut targets = vec![Target::Module(module)];
        for segment in rest {
            let modules: Vec<usize> = targets.iter().filter_map(|target| target.module()).collect();
            if modules.is_empty() {
                return targets; // A type's function, an enum's variant: where the type is.
            }
            targets.clear();
            for module in modules {
                for target in self.look_up(module, segment, open) {
                    if !targets.contains(&target) {
                        targets.push(target);
                    }
                }
            }
        }
        targets
    }

    /// What a name stands for in a module. `open` are the names being looked up: `use scan::scan` names itself.
    fn look_up(&self, module: usize, name: &str, open: &mut Vec<(usize, String)>) -> Vec<Target> {
        let key = (module, name.to_owned());
        if open.contains(&key) {
            return match self.child(module, name) {
                Some(child) => vec![Target::Module(child)],
                None => Vec::new(),
            };
        }
        open.push(key);
        let mut targets = Vec::new();
        for known in self.all[module].names.get(name).into_iter().flatten() {
            match known {
                Name::Item => targets.push(Target::Item(module)),
                Name::Module(child) => targets.push(Target::Module(*child)),
                Name::Import(path) => targets.extend(self.resolve_path(module, path, open)),
            }
        }
        if targets.is_empty() {
            for glob in &self.all[module].globs {
                for target in self.resolve_path(module, glob, open) {
                    if let Target::Module(of) = target {
                        targets.extend(self.look_up(of, name, open));
                    }
                }
            }
        }
        open.pop();
        targets
    }

    fn child(&self, module: usize, name: &str) -> Option<usize> {
        let names = self.all[module].names.get(name)?;
        names.iter().find_map(|name| if let Name::Module(child) = name { Some(*child) } else { None })
    }
}

impl Target {
    fn module(self) -> Option<usize> {
        match self {
            Self::Module(module) => Some(module),
            Self::Item(_) => None,
        }
    }
}

impl Module<'_> {
    fn define(&mut self, ident: &Ident, name: Name) {
        self.names.entry(ident.to_string()).or_default().push(name);
    }

    fn import(&mut self, tree: &UseTree) {
        for import in imports(tree) {
            match import.name {
                Some(name) => self.names.entry(name).or_default().push(Name::Import(import.path)),
                None => self.globs.push(import.path),
            }
        }
    }
}

/// Every path that a `use` item imports.
pub(crate) fn imports(tree: &UseTree) -> Vec<Import> {
    let mut found = Vec::new();
    collect(tree, &mut Vec::new(), &mut found);
    found
}

fn collect(tree: &UseTree, prefix: &mut Vec<String>, found: &mut Vec<Import>) {
    let mut leaf = |last: Option<&Ident>, name: Option<&Ident>, line: usize| {
        let mut path = prefix.clone();
        path.extend(last.filter(|last| *last != "self").map(Ident::to_string));
        // `use a::b::{self}` is named `b`.
        let name =
            name.map(|name| if name == "self" { path.last().cloned().unwrap_or_default() } else { name.to_string() });
        found.push(Import { path, name, line });
    };
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            collect(&path.tree, prefix, found);
            prefix.pop();
        }
        UseTree::Name(name) => leaf(Some(&name.ident), Some(&name.ident), line(&name.ident)),
        UseTree::Rename(renamed) => leaf(Some(&renamed.ident), Some(&renamed.rename), line(&renamed.ident)),
        UseTree::Glob(glob) => leaf(None, None, glob.star_token.spans[0].start().line),
        UseTree::Group(group) => group.items.iter().for_each(|tree| collect(tree, prefix, found)),
    }
}

/// The line of a name.
pub(crate) fn line(ident: &Ident) -> usize {
    ident.span().start().line
}

fn defined_name(item: &Item) -> Option<&Ident> {
    match item {
        Item::Const(item) => Some(&item.ident),
        Item::Enum(item) => Some(&item.ident),
        Item::Fn(item) => Some(&item.sig.ident),
        Item::Macro(item) => item.ident.as_ref(),
        Item::Static(item) => Some(&item.ident),
        Item::Struct(item) => Some(&item.ident),
        Item::Trait(item) => Some(&item.ident),
        Item::Type(item) => Some(&item.ident),
        Item::Union(item) => Some(&item.ident),
        _ => None,
    }
}

/// Attributes of an item that may be only for tests.
pub(crate) fn attributes(item: &Item) -> Option<&[Attribute]> {
    match item {
        Item::Const(item) => Some(&item.attrs),
        Item::Enum(item) => Some(&item.attrs),
        Item::Fn(item) => Some(&item.attrs),
        Item::Impl(item) => Some(&item.attrs),
        Item::Macro(item) => Some(&item.attrs),
        Item::Mod(item) => Some(&item.attrs),
        Item::Static(item) => Some(&item.attrs),
        Item::Struct(item) => Some(&item.attrs),
        Item::Trait(item) => Some(&item.attrs),
        Item::Type(item) => Some(&item.attrs),
        Item::Use(item) => Some(&item.attrs),
        _ => None,
    }
}

/// Whether attributes restrict an item to tests: `#[cfg(test)]`, `#[cfg(all(test, …))]`.
pub(crate) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let condition = list.tokens.to_string().replace(' ', "");
        list.path.is_ident("cfg") && (condition == "test" || condition.starts_with("all(test,"))
    })
}
