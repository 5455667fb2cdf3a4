//! The innermost loops in a compiler's own text, from its labels and jumps.

use std::collections::{BTreeMap, BTreeSet};

/// The body of a loop that contains no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loop {
    /// Instructions that each lane issues.
    pub(crate) instructions: usize,
    /// Multiply-adds of floats among them.
    pub(crate) multiply_adds: usize,
}

#[derive(Default)]
struct Block {
    instructions: usize,
    multiply_adds: usize,
    next: Vec<usize>,
}

/// The innermost loop with the most multiply-adds; None where the text has no loop or is in no known language.
pub(crate) fn innermost(text: &str) -> Option<Loop> {
    let blocks = blocks(text);
    let loops = natural_loops(&blocks);
    let holds_another =
        |head: &usize, body: &BTreeSet<usize>| loops.keys().any(|other| other != head && body.contains(other));
    let inner = loops.iter().filter(|(head, body)| !holds_another(head, body));
    let count = |body: &BTreeSet<usize>| {
        let sum = |of: fn(&Block) -> usize| body.iter().map(|at| of(&blocks[*at])).sum();
        Loop { instructions: sum(|block| block.instructions), multiply_adds: sum(|block| block.multiply_adds) }
    };
    inner.map(|(_, body)| count(body)).max_by_key(|found| (found.multiply_adds, found.instructions))
}

/// The stretches between labels and jumps. A block falls through to the one after it unless its jump is taken always.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = vec![Block::default()];
    let mut labels: BTreeMap<&str, usize> = BTreeMap::new();
    let mut jumps: Vec<(usize, &str)> = Vec::new();
    let mut falls = vec![true];
    for line in text.lines() {
        if let Some(label) = label(line) {
            blocks.push(Block::default());
            falls.push(true);
            labels.insert(label, blocks.len() - 1);
            continue;
        }
        let Some((predicated, mnemonic)) = mnemonic(line) else { continue };
        let at = blocks.len() - 1;
        let scalar = ["s_", "sync", "nop"].iter().any(|start| mnemonic.starts_with(start));
        // Two operations that are issued as one count as two: not every one of them can be paired.
        blocks[at].instructions += if mnemonic.starts_with("v_dual_") { 2 } else { usize::from(!scalar) };
        blocks[at].multiply_adds += multiply_adds(mnemonic, line);
        // Intel's `if` and `break` jump forward within what they belong to.
        let jump = mnemonic.starts_with("s_branch")
            || mnemonic.starts_with("s_cbranch")
            || mnemonic == "bra"
            || mnemonic.starts_with("while");
        if jump && let Some(target) = line.split_whitespace().find(|word| is_label(word)) {
            jumps.push((at, target));
            falls[at] = mnemonic != "s_branch" && (mnemonic != "bra" || predicated);
            blocks.push(Block::default());
            falls.push(true);
        } else if mnemonic == "s_endpgm" || mnemonic == "exit" {
            falls[at] = predicated;
        }
    }
    for at in 0..blocks.len() - 1 {
        if falls[at] {
            blocks[at].next.push(at + 1);
        }
    }
    for (at, target) in jumps {
        if let Some(to) = labels.get(target) {
            blocks[at].next.push(*to);
        }
    }
    blocks
}

/// `BB7` of ACO, `L7` of NAK, `LABEL7` of brw.
fn is_label(word: &str) -> bool {
    let digits = ["BB", "LABEL", "L"].iter().find_map(|start| word.strip_prefix(start));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn label(line: &str) -> Option<&str> {
    let line = line.trim();
    let label = match line.strip_prefix("block ") {
        Some(rest) => rest.split_whitespace().nth(1)?,
        None => line.strip_suffix(':')?,
    };
    is_label(label).then_some(label)
}

/// The name of a line's instruction, and true if a predicate may skip it.
fn mnemonic(line: &str) -> Option<(bool, &str)> {
    let line = line.split([';', '/']).next()?.trim();
    let line = line.split_once(" = ").map_or(line, |(_, instruction)| instruction);
    let mut words = line.split_whitespace();
    let first = words.next()?;
    let predicated = first.starts_with('@') || first.starts_with("(+") || first.starts_with("(-");
    let name = if predicated { words.next()? } else { first };
    name.starts_with(|c: char| c.is_ascii_lowercase()).then_some((predicated, name))
}

fn multiply_adds(mnemonic: &str, line: &str) -> usize {
    let of_amd = ["v_fma_f32", "v_fmac_f32", "v_fmaak_f32", "v_fmamk_f32", "v_mad_f32", "v_mac_f32"];
    if mnemonic.starts_with("v_dual_") {
        return line.matches("v_dual_fmac").count()
            + line.matches("v_dual_fmaa").count()
            + line.matches("v_dual_fmam").count();
    }
    if mnemonic.starts_with("v_pk_fma_f32") {
        return 2;
    }
    let of_intel = mnemonic.starts_with("mad(")
        && line.split_whitespace().find(|word| word.contains('<')).is_some_and(|to| to.ends_with(">F"));
    usize::from(of_amd.iter().any(|name| mnemonic.starts_with(name)) || mnemonic.starts_with("ffma") || of_intel)
}

/// The bodies of all loops, by the block that begins them.
fn natural_loops(blocks: &[Block]) -> BTreeMap<usize, BTreeSet<usize>> {
    let mut before = vec![Vec::new(); blocks.len()];
    for (at, block) in blocks.iter().enumerate() {
        block.next.iter().for_each(|next| before[*next].push(at));
    }
    let mut loops: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (from, head) in back_edges(blocks) {
        let body = loops.entry(head).or_default();
        body.insert(head);
        let mut open = vec![from];
        while let Some(at) = open.pop() {
            if body.insert(at) {
                open.extend(&before[at]);
            }
        }
    }
    loops
}

/// Jumps to a block on the way to the jump itself.
fn back_edges(blocks: &[Block]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut seen = vec![false; blocks.len()];
    let mut on_path = vec![false; blocks.len()];
    let mut path = vec![(0, 0)];
    while let Some((at, next)) = path.pop() {
        (seen[at], on_path[at]) = (true, true);
        match blocks[at].next.get(next) {
            Some(to) => {
                path.push((at, next + 1));
                if on_path[*to] {
                    found.push((at, *to));
                } else if !seen[*to] {
                    path.push((*to, 0));
                }
            }
            None => on_path[at] = false,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUND: Option<Loop> = Some(Loop { instructions: 3, multiply_adds: 2 });

    #[test]
    fn the_innermost_loop_of_each_compiler_is_counted() {
        let aco = "BB0:\n\ts_mov_b32 s0, 0 ; 1\nBB1:\n\tv_mov_b32 v0, v1\nBB2:\n\tds_load_b128 v[0:3], v4\n\tv_fmac_f32_e32 v0, v1, v2\n\tv_fma_f32 v0, v1, v2, v3\n\ts_cbranch_scc1 BB2 ; 2\n\tv_mov_b32 v0, v1\n\ts_branch BB1\n";
        assert_eq!(innermost(aco), FOUND);
        // The end of a loop may lie behind the code that follows it.
        let nak = "block 0 L0 [] -> {\n r0 = mov r1 // delay=1\n} -> [1]\nblock 1 L1 [0] -> {\n r0 = ffma.ftz r1 r2 r3 // delay\n @p0 bra L3 // delay=1\n} -> [2, 3]\nblock 2 L2 [1] -> {\n exit // delay=1\n} -> []\nblock 3 L3 [1] -> {\n r0 = ffma r1 r2 r3\n bra L1\n} -> [1]\n";
        assert_eq!(innermost(nak), Some(Loop { instructions: 4, multiply_adds: 2 }));
        let brw = "LABEL5:\nmov(8) g1<1>UD g2\nLABEL4:\nsync nop(1) null\nmad(8) g1<1>F g2 g3 g4 { align1 1Q };\n(+f0.0) mad(8) g1<1>F g2\nwhile(8) JIP: LABEL4 { align1 };\nwhile(8) JIP: LABEL5 { align1 };\n";
        assert_eq!(innermost(brw), FOUND);
    }

    #[test]
    fn a_text_without_loops_has_none() {
        assert_eq!(innermost("BB0:\n\tv_fma_f32 v0, v1, v2, v3\n\ts_endpgm\n"), None);
        assert_eq!(innermost(""), None);
    }
}
