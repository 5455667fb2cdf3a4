//! Kernels as plain data: a WGSL text, the parts it is joined with, and the constants of this variant.
//!
//! A shader is assembled from a generated prelude of `enable`, `const` and `alias` lines, then the shared parts, then the kernel.
//! Two rules extend plain WGSL. The lines between `#for i in A..B` and `#end` are written out once per value, with `$i` replaced by
//! it: several compilers move accumulators out of registers if a loop variable addresses them. The lines between `#if NAME` and
//! `#end` are kept if that constant is true, the lines after an `#else` if it is false: a text may not even mention a feature that
//! the device lacks.

use std::fmt::Write;

use super::params::{Param, ParamType};
#[cfg(target_arch = "wasm32")]
use super::shader_texts::text_of;

/// The value of one prelude line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    /// `const NAME: u32 = ...;`
    U32(u32),
    /// `const NAME: bool = ...;`, which `#if` reads too.
    Bool(bool),
    /// `alias NAME = TYPE;`
    Type(&'static str),
}

impl From<u32> for Constant {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<bool> for Constant {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

/// The access of a kernel to one of its storage bindings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    Read,
    /// Reads and writes.
    ReadWrite,
}

/// The text of a shader, by what `shader!` gives: outside browsers the text itself.
#[cfg(not(target_arch = "wasm32"))]
fn text_of(text: &'static str) -> &'static str {
    text
}

/// One variant of one kernel. Equal kernels share a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The name, for messages and profiles.
    pub name: &'static str,
    enables: Vec<&'static str>,
    source: &'static str,
    parts: Vec<&'static str>,
    constants: Vec<(&'static str, Constant)>,
    params: ParamType,
}

impl Kernel {
    /// A kernel of this text, whose dispatches take parameters of type `P`.
    pub fn new<P: Param>(name: &'static str, source: &'static str) -> Self {
        let source = text_of(source);
        Self { name, enables: Vec::new(), source, parts: Vec::new(), constants: Vec::new(), params: P::TYPE }
    }

    /// The layout of the parameters.
    pub fn params(&self) -> ParamType {
        self.params
    }

    /// The texts that the kernel is assembled from, its own last.
    pub fn texts(&self) -> impl Iterator<Item = &'static str> {
        self.parts.iter().chain([&self.source]).copied()
    }

    /// Names an extension of the language that the text needs.
    pub fn enable(mut self, extension: &'static str) -> Self {
        self.enables.push(extension);
        self
    }

    /// The extensions beyond the language's baseline.
    pub fn enables(&self) -> &[&'static str] {
        &self.enables
    }

    /// Joins a shared part in front of the kernel.
    pub fn part(mut self, text: &'static str) -> Self {
        self.parts.push(text_of(text));
        self
    }

    /// Adds a constant to the prelude.
    pub fn constant(mut self, name: &'static str, value: impl Into<Constant>) -> Self {
        self.constants.push((name, value.into()));
        self
    }

    /// The complete WGSL text of this variant.
    pub fn wgsl(&self) -> String {
        let mut text: String = self.enables.iter().map(|name| format!("enable {name};\n")).collect();
        for (name, value) in &self.constants {
            let _ = match value {
                Constant::U32(v) => writeln!(text, "const {name}: u32 = {v}u;"),
                Constant::Bool(v) => writeln!(text, "const {name}: bool = {v};"),
                Constant::Type(v) => writeln!(text, "alias {name} = {v};"),
            };
        }
        for part in self.parts.iter().chain([&self.source]) {
            let lines: Vec<&str> = part.lines().collect();
            self.expand(&lines, &mut text);
        }
        text
    }

    /// The name with the constants of this variant, as a report shows it: `rms_norm WG_SIZE=64 ADD=false`.
    pub fn variant(&self) -> String {
        let mut text = self.name.to_owned();
        for (name, value) in &self.constants {
            let _ = match value {
                Constant::U32(v) => write!(text, " {name}={v}"),
                Constant::Bool(v) => write!(text, " {name}={v}"),
                Constant::Type(v) => write!(text, " {name}={v}"),
            };
        }
        text
    }

    /// The accesses of group 0 in binding order, from the declarations in the text.
    pub fn accesses(&self) -> Vec<Access> {
        let mut found: Vec<(u32, Access)> = Vec::new();
        for line in self.parts.iter().chain([&self.source]).flat_map(|p| p.lines()) {
            let Some(rest) = line.trim_start().strip_prefix("@group(0) @binding(") else { continue };
            let Some((number, rest)) = rest.split_once(')') else { continue };
            let access = if rest.contains("read_write") { Access::ReadWrite } else { Access::Read };
            if let Ok(number) = number.parse() {
                found.push((number, access));
            }
        }
        found.sort_by_key(|(number, _)| *number);
        debug_assert!(
            found.iter().enumerate().all(|(i, (number, _))| i as u32 == *number),
            "bindings of {}",
            self.name
        );
        found.into_iter().map(|(_, access)| access).collect()
    }

    fn bound(&self, text: &str) -> u32 {
        text.parse().ok().unwrap_or_else(|| {
            self.constants
                .iter()
                .find_map(|(name, value)| match value {
                    Constant::U32(v) if *name == text => Some(*v),
                    _ => None,
                })
                .unwrap_or_else(|| panic!("shader {}: `{text}` is neither a number nor a constant", self.name))
        })
    }

    fn holds(&self, name: &str) -> bool {
        let value = self.constants.iter().find(|(known, _)| *known == name);
        let Some((_, Constant::Bool(value))) = value else {
            panic!("shader {}: `{name}` is no constant of true or false", self.name)
        };
        *value
    }

    fn expand(&self, lines: &[&str], out: &mut String) {
        let mut at = 0;
        while at < lines.len() {
            let line = lines[at].trim();
            if let Some(name) = line.strip_prefix("#if ") {
                let (end, middle) = block_end(&lines[at + 1..]).expect("`#if` without `#end`");
                let body = &lines[at + 1..at + 1 + end];
                let (yes, no) = middle.map_or((body, &[][..]), |middle| (&body[..middle], &body[middle + 1..]));
                self.expand(if self.holds(name) { yes } else { no }, out);
                at += end + 2;
            } else if let Some(head) = line.strip_prefix("#for ") {
                let (name, range) = head.split_once(" in ").expect("`#for NAME in A..B`");
                let (from, to) = range.split_once("..").expect("`#for NAME in A..B`");
                let (end, _) = block_end(&lines[at + 1..]).expect("`#for` without `#end`");
                let pattern = format!("${name}");
                for value in self.bound(from)..self.bound(to) {
                    let body: Vec<String> = lines[at + 1..at + 1 + end]
                        .iter()
                        .map(|line| line.replace(&pattern, &value.to_string()))
                        .collect();
                    self.expand(&body.iter().map(String::as_str).collect::<Vec<_>>(), out);
                }
                at += end + 2;
            } else {
                out.push_str(lines[at]);
                out.push('\n');
                at += 1;
            }
        }
    }
}

/// The index of a block's `#end` among the lines after its head, and that of its `#else` if it has one.
fn block_end(lines: &[&str]) -> Option<(usize, Option<usize>)> {
    let (mut depth, mut middle) = (0, None);
    for (i, line) in lines.iter().enumerate() {
        match line.trim() {
            "#end" if depth == 0 => return Some((i, middle)),
            "#end" => depth -= 1,
            "#else" if depth == 0 => middle = Some(i),
            line if line.starts_with("#for ") || line.starts_with("#if ") => depth += 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_written_out_with_their_bounds_from_constants() {
        let kernel =
            Kernel::new::<u32>("k", "#for i in 0..N\na$i;\n#for j in 1..3\nb$i$j;\n#end\n#end\nend;").constant("N", 2);
        let text = kernel.wgsl();
        assert_eq!(text, "const N: u32 = 2u;\na0;\nb01;\nb02;\na1;\nb11;\nb12;\nend;\n");
    }

    #[test]
    fn lines_are_written_where_their_constant_holds() {
        let source = "#if A\na;\n#if B\nab;\n#else\na!b;\n#end\n#else\n!a;\n#for i in 0..2\n$i;\n#end\n#end\nend;";
        let text = |a: bool, b: bool| {
            let text = Kernel::new::<u32>("k", source).constant("A", a).constant("B", b).wgsl();
            text.lines().skip(2).collect::<String>()
        };
        assert_eq!(text(true, true), "a;ab;end;");
        assert_eq!(text(true, false), "a;a!b;end;");
        assert_eq!(text(false, true), "!a;0;1;end;");
    }

    #[test]
    fn accesses_come_in_binding_order() {
        let kernel = Kernel::new::<u32>("k", "@group(0) @binding(1) var<storage, read_write> y: array<f32>;")
            .part("@group(0) @binding(0) var<storage, read> x: array<f32>;");
        assert_eq!(kernel.accesses(), [Access::Read, Access::ReadWrite]);
    }
}
