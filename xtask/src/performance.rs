//! The table of docs/PERFORMANCE.md, from `bench/record` (format: `bench/README.md`).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const PAGE: &str = "docs/PERFORMANCE.md";
const RECORD: &str = "bench/record";
const BEGIN: &str = "<!-- table: written by cargo xtask performance -->";
const END: &str = "<!-- end of table -->";
const HEADER: &str = "work,by,figure,unit,commit,command,note";

/// Names of machines in the table, by the name in the record.
const MACHINES: &[(&str, &str)] = &[
    ("zen4-2core", "AMD Zen 4, two cores"),
    ("intel-2core", "Intel with AVX-512, two cores"),
    ("h100", "NVIDIA H100"),
    ("h200", "NVIDIA H200"),
];

/// First words of works, in the order of the table; works with other first words follow.
const ORDER: &[&str] =
    &["scan", "embedding", "train", "prefill", "decode", "generate", "first", "the", "model", "limit:"];

/// A line of the record.
#[derive(Debug, Clone)]
struct Row {
    work: String,
    by: String,
    figure: String,
    commit: String,
    command: String,
    note: String,
    date: String,
    machine: &'static str,
}

/// Writes the table into the page, or with `check` fails if it is not up to date.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let path = root.join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| PAGE.to_owned())?;
    let new = with_table(&page, &table(&rows(&root.join(RECORD))?))?;
    if check {
        ensure!(new == page, "the table of {PAGE} is not that of {RECORD}: run `cargo xtask performance`");
    } else if new != page {
        std::fs::write(&path, new)?;
    }
    Ok(())
}

/// The page with another table between its marks.
fn with_table(page: &str, table: &str) -> Result<String> {
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("{PAGE}: no `{BEGIN}` or no `{END}`"))?;
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

/// All rows, those of older files first.
fn rows(folder: &Path) -> Result<Vec<Row>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    let mut rows = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        rows.extend(read(&name, &std::fs::read_to_string(&file)?).with_context(|| file.display().to_string())?);
    }
    Ok(rows)
}

/// The rows of a file named `DATE-MACHINE`.
fn read(name: &str, text: &str) -> Result<Vec<Row>> {
    let known = |machine: &str| MACHINES.iter().find(|(id, _)| *id == machine);
    let (date, machine) = name.split_at_checked(10).context("wanted a name such as 2026-11-24-h200.csv")?;
    let (_, machine) = known(machine.trim_start_matches('-')).context("no such machine in xtask/src/performance.rs")?;
    let mut lines = text.lines();
    ensure!(lines.next() == Some(HEADER), "line 1: wanted `{HEADER}`");
    let row = |(i, line): (usize, &str)| {
        let number = i + 2;
        let fields: [String; 7] =
            fields(line).try_into().map_err(|_| anyhow::anyhow!("line {number}: wanted 7 fields"))?;
        let [work, by, figure, unit, commit, command, note] = fields;
        if work.is_empty() || figure.is_empty() {
            bail!("line {number}: no work or no figure");
        }
        let figure = format!("{} {unit}", grouped(&figure));
        Ok(Row { work, by, figure, commit, command, note, date: date.into(), machine })
    };
    lines.enumerate().map(row).collect()
}

/// The fields of a line of CSV; in quotes, commas are text, and two quotes are one.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => field.extend(rest.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields
}

/// The figure as recorded, with commas between thousands of a whole number.
fn grouped(figure: &str) -> String {
    if figure.len() < 4 || !figure.bytes().all(|b| b.is_ascii_digit()) {
        return figure.to_owned();
    }
    let first = (figure.len() - 1) % 3 + 1;
    let groups = figure.as_bytes()[first..].chunks(3).map(String::from_utf8_lossy);
    groups.fold(figure[..first].to_owned(), |text, group| text + "," + &group)
}

/// A line for each work and machine that has a figure that holds.
fn table(rows: &[Row]) -> String {
    let mut works: Vec<&str> = Vec::new();
    let mut newest: BTreeMap<(&str, &str), BTreeMap<&str, &Row>> = BTreeMap::new();
    for row in rows {
        if !works.contains(&row.work.as_str()) {
            works.push(&row.work);
        }
        let of_work = newest.entry((&row.work, row.machine)).or_default();
        match row.note.starts_with("superseded") {
            true => of_work.remove(row.by.as_str()),
            false => of_work.insert(&row.by, row),
        };
    }
    let group =
        |work: &str| ORDER.iter().position(|first| work.split(' ').next() == Some(*first)).unwrap_or(ORDER.len());
    works.sort_by_key(|work| group(work));
    let mut text =
        String::from("| work | machine | elapid | others | measured | command |\n|---|---|---:|---|---|---|\n");
    for (work, (_, machine)) in works.iter().flat_map(|work| MACHINES.iter().map(move |machine| (work, machine))) {
        let Some(by) = newest.get(&(*work, *machine)) else { continue };
        let noted = |row: &Row| match row.note.as_str() {
            "" => row.figure.clone(),
            note => format!("{} ({note})", row.figure),
        };
        let elapid = by.get("");
        let others = by.iter().filter(|(program, _)| !program.is_empty());
        let others: Vec<String> = others.map(|(program, row)| format!("{program}: {}", noted(row))).collect();
        let Some(source) = elapid.or_else(|| by.values().next()) else { continue };
        let command = if source.command.is_empty() { String::new() } else { format!("`{}`", source.command) };
        let (date, commit) = (&source.date, &source.commit);
        let figure = elapid.map_or_else(String::new, |row| noted(row));
        let others = others.join("; ");
        text += &format!("| {work} | {machine} | {figure} | {others} | {date}, {commit} | {command} |\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "work,by,figure,unit,commit,command,note\n\
                       train x,,1000,tokens/s,aaa,elapid a,\n\
                       train x,other,90.50,tokens/s,aaa,,\"without head, and loss\"\n\
                       scan x,,2.0,ms,aaa,\"elapid \"\"b\"\"\",\n\
                       scan y,,3,ms,aaa,,superseded: another form\n";
    const NEW: &str = "work,by,figure,unit,commit,command,note\ntrain x,,1234567,tokens/s,bbb,elapid a,two runs\n";

    #[test]
    fn the_newest_figure_that_holds_is_in_the_table() {
        let mut rows = read("2026-01-02-h200", OLD).unwrap();
        rows.extend(read("2026-01-03-h200", NEW).unwrap());
        let wanted = "| scan x | NVIDIA H200 | 2.0 ms |  | 2026-01-02, aaa | `elapid \"b\"` |\n\
                      | train x | NVIDIA H200 | 1,234,567 tokens/s (two runs) | \
                      other: 90.50 tokens/s (without head, and loss) | 2026-01-03, bbb | `elapid a` |\n";
        assert_eq!(table(&rows).split_once("---|\n").unwrap().1, wanted);
    }

    #[test]
    fn a_record_that_is_not_one_is_named() {
        let message = |name: &str, text: &str| format!("{:#}", read(name, text).unwrap_err());
        assert!(message("2026-01-02-abacus", OLD).contains("no such machine"));
        assert!(message("2026-01-02-h200", "what,median\n").starts_with("line 1: wanted `work,by,"));
        assert!(message("2026-01-02-h200", &format!("{HEADER}\nscan,1\n")).starts_with("line 2: wanted 7 fields"));
    }

    #[test]
    fn the_table_is_between_its_marks() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        assert_eq!(with_table(&page, "new\n").unwrap(), format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert!(with_table("nothing", "new\n").is_err());
    }
}
