//! The character map of a `Precompiled` normalizer: a double-array trie of SentencePiece, in base64.
//!
//! A `u32` with the trie's size in bytes, the trie as `u32` units, then the replacements, each ended by a zero byte. The
//! crate follows the units without bounds checks.

/// Checks a map of the file: its encoding, and every path through its trie.
pub(super) fn check(text: Option<&str>) -> Result<(), String> {
    let text = text.ok_or("is not a string")?;
    let bytes = base64::decode(text).map_err(|e| format!("is not base64 ({e})"))?;
    let (size, rest) = bytes.split_first_chunk().ok_or("is empty")?;
    let size = u32::from_le_bytes(*size) as usize / 4 * 4;
    let (trie, replacements) = rest
        .split_at_checked(size)
        .ok_or_else(|| format!("is cut short: its trie has {size} bytes, and {} are there", rest.len()))?;
    let replacements = std::str::from_utf8(replacements).map_err(|_| "has replacements that are not UTF-8")?;
    let units: Vec<usize> =
        trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]) as usize).collect();
    walk(&units, replacements)
}

/// Visits every node that some text can reach.
fn walk(units: &[usize], replacements: &str) -> Result<(), String> {
    let outside = |node: usize| format!("is damaged: its trie of {} units goes to unit {node}", units.len());
    let root = units.first().ok_or("has no trie")?;
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(*root)];
    while let Some(node) = open.pop() {
        // A text can continue with any byte, and its unit is read before it is compared.
        if node | 0xff >= units.len() {
            return Err(outside(node | 0xff));
        }
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        for byte in 1..=0xff {
            let unit = units[node ^ byte];
            if unit & (1 << 31 | 0xff) != byte {
                continue;
            }
            let child = node ^ byte ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let at = units.get(child).ok_or_else(|| outside(child))? & ((1 << 31) - 1);
                if !replacements.is_char_boundary(at) {
                    return Err(format!("is damaged: a replacement begins at byte {at} of {}", replacements.len()));
                }
            }
            open.push(child);
        }
    }
    Ok(())
}

/// The offset of a unit's children, by exclusive or.
fn offset(unit: usize) -> usize {
    (unit >> 10) << ((unit & (1 << 9)) >> 6)
}
