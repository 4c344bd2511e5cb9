//! Setting one value in the table of a config.

use elapid::config::Placement;
use elapid::layers::LayerConfig;
use elapid::settings::Settings;
use toml::{Table, Value};

/// Replaces the value at a dotted path and returns the old one; none if there is no such setting. Settings of a layer that
/// have no value yet are inserted, and checked when the table is read.
pub(super) fn set(tree: &mut Table, path: &str, value: Value) -> Option<Option<Value>> {
    let path = unflatten(tree, path);
    let keys: Vec<&str> = path.split('.').collect();
    let before = pattern(tree);
    let was = match keys.as_slice() {
        ["model", "layer", name, "kind"] => Some(set_kind(table(layers(tree)?, name)?, value)),
        ["model", "layer", name, inner @ ..] if !inner.is_empty() => {
            let (last, outer) = inner.split_last()?;
            let of_name = table(layers(tree)?, name)?;
            let place = outer.iter().try_fold(of_name, |place, key| table(place, key))?;
            match place.get(*last) {
                Some(Value::Table(_)) => None,
                _ => Some(place.insert((*last).to_owned(), value)),
            }
        }
        [section, key] => {
            let place = tree.get_mut(*section)?.get_mut(*key).filter(|place| !place.is_table())?;
            Some(Some(std::mem::replace(place, value)))
        }
        _ => None,
    }?;
    let after = pattern(tree);
    for name in before.iter().filter(|name| !after.contains(name)) {
        layers(tree)?.remove(name);
    }
    Some(was)
}

/// The full path of a setting of Mamba-1 in its older form, `model.d_state`, from before layers had names.
fn unflatten(tree: &Table, path: &str) -> String {
    let kind = "mamba1";
    let flat =
        path.strip_prefix("model.").filter(|key| tree.get("model").is_some_and(|model| model.get(key).is_none()));
    let is_known =
        |key: &&str| LayerConfig::of(kind).is_some_and(|layer| layer.fields().iter().any(|f| f.name == *key));
    flat.filter(is_known).map_or_else(|| path.to_owned(), |key| format!("model.layer.{kind}.{key}"))
}

/// The names in the patterns of layers and feed-forwards.
fn pattern(tree: &Table) -> Vec<String> {
    let list = |key| tree.get("model").and_then(|model| model.get(key)).and_then(Value::as_array).cloned();
    let names = ["layers", "ffn"].into_iter().filter_map(list).flatten();
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn layers(tree: &mut Table) -> Option<&mut Table> {
    table(table(tree, "model")?, "layer")
}

/// The table of a key, created if it is missing.
fn table<'t>(of: &'t mut Table, key: &str) -> Option<&'t mut Table> {
    of.entry(key).or_insert_with(|| Table::new().into()).as_table_mut()
}

/// Another kind has other settings; only those of its placement stay.
fn set_kind(table: &mut Table, kind: Value) -> Option<Value> {
    if table.get("kind") != Some(&kind) {
        table.retain(|key, _| key == "kind" || Placement::FIELDS.iter().any(|field| field.name == key));
    }
    table.insert("kind".into(), kind)
}
