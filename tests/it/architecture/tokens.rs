//! The tokens of a Rust source file, as far as imports and string literals need them.

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Word(String),
    /// `::`
    Path,
    Mark(char),
    /// The characters between the quotes, escapes as they are written.
    Text(String),
}

impl Token {
    pub fn is(&self, mark: char) -> bool {
        *self == Self::Mark(mark)
    }

    pub fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// Splits a source text; comments, numbers' insides, character literals and lifetimes are left out.
pub fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut found = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        if c == '/' && at(i + 1) == '/' {
            i = end_of(&chars, i, &['\n']);
        } else if c == '/' && at(i + 1) == '*' {
            i = end_of_block_comment(&chars, i);
        } else if c == '"' {
            let end = end_of_text(&chars, i + 1);
            found.push(Token::Text(chars[i + 1..end].iter().collect()));
            i = end + 1;
        } else if let Some((start, end, hashes)) = raw_text(&chars, i) {
            found.push(Token::Text(chars[start..end].iter().collect()));
            i = end + 1 + hashes;
        } else if c == '\'' {
            i = end_of_quote(&chars, i);
        } else if c.is_alphanumeric() || c == '_' {
            let end = (i..chars.len()).find(|j| !(at(*j).is_alphanumeric() || at(*j) == '_')).unwrap_or(chars.len());
            // A byte string's `b` is no word.
            if !(end == i + 1 && c == 'b' && at(end) == '"') {
                found.push(Token::Word(chars[i..end].iter().collect()));
            }
            i = end;
        } else if c == ':' && at(i + 1) == ':' {
            found.push(Token::Path);
            i += 2;
        } else {
            if !c.is_whitespace() {
                found.push(Token::Mark(c));
            }
            i += 1;
        }
    }
    found
}

fn end_of(chars: &[char], from: usize, ends: &[char]) -> usize {
    (from..chars.len()).find(|i| ends.contains(&chars[*i])).unwrap_or(chars.len())
}

fn end_of_block_comment(chars: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut i = from;
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn end_of_text(chars: &[char], from: usize) -> usize {
    let mut i = from;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i.min(chars.len())
}

/// Where the content of `r"..."`, `r#"..."#` or `br"..."` begins and ends, and the number of its hashes.
fn raw_text(chars: &[char], from: usize) -> Option<(usize, usize, usize)> {
    let mut i = from + usize::from(chars[from] == 'b');
    if chars.get(i) != Some(&'r') {
        return None;
    }
    i += 1;
    let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
    i += hashes;
    if chars.get(i) != Some(&'"') {
        return None;
    }
    let start = i + 1;
    let closes = |j: usize| chars[j] == '"' && chars[j + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    let end = (start..chars.len()).find(|j| closes(*j)).unwrap_or(chars.len());
    Some((start, end, hashes))
}

/// Past a character literal, or past the quote of a lifetime.
fn end_of_quote(chars: &[char], from: usize) -> usize {
    match (chars.get(from + 1), chars.get(from + 2)) {
        (Some('\\'), _) => end_of(chars, from + 3, &['\'']) + 1,
        (Some(_), Some('\'')) => from + 3,
        _ => from + 1,
    }
}

/// Removes each item that is compiled for tests alone; the names of modules that stand in files of their own among them.
pub fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let attribute: Vec<Token> = self::tokens("#[cfg(test)]");
    let (mut kept, mut files) = (Vec::new(), Vec::new());
    let mut i = 0;
    while i < tokens.len() {
        if !tokens[i..].starts_with(&attribute) {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        let start = i + attribute.len();
        i = end_of_item(tokens, start);
        let item = &tokens[start..i];
        let module = item.iter().position(|t| t.word() == Some("mod"));
        if let (Some(at), Some(last)) = (module, item.last())
            && last.is(';')
        {
            files.extend(item[at + 1].word().map(str::to_owned));
        }
    }
    (kept, files)
}

/// Past the `;`, the `,` or the closing brace that ends an item.
fn end_of_item(tokens: &[Token], from: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(from) {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']') => depth -= 1,
            Token::Mark('}') => {
                depth -= 1;
                if depth == 0 {
                    return i + 1;
                }
            }
            Token::Mark(';' | ',') if depth == 0 => return i + 1,
            _ => {}
        }
        if depth < 0 {
            return i;
        }
    }
    tokens.len()
}

#[test]
fn comments_and_texts_are_told_from_code() {
    let words =
        |source: &str| -> Vec<String> { tokens(source).iter().filter_map(|t| t.word().map(str::to_owned)).collect() };
    assert_eq!(words("a // b\n c /* d /* e */ f */ g"), ["a", "c", "g"]);
    assert_eq!(words(r##"x("y \" z", r#"u " v"#, b"w", 't', '\'', '\u{1F600}') 'life q"##), ["x", "life", "q"]);
    let texts = tokens(r##"a("--one", r#"--two "quoted""#)"##);
    let texts: Vec<&Token> = texts.iter().filter(|t| matches!(t, Token::Text(_))).collect();
    assert_eq!(texts, [&Token::Text("--one".to_owned()), &Token::Text("--two \"quoted\"".to_owned())]);
}

#[test]
fn items_of_tests_are_removed() {
    let source =
        "use a; #[cfg(test)] mod tests { fn f() { g(); } } use b; #[cfg(test)] #[path = \"x.rs\"] mod far; use c;
        #[cfg(test)] pub fn h<T: Fn(u32, u32)>(t: T) -> [u8; 2] { t(1, 2); [0, 1] } use d;";
    let (kept, files) = without_tests(&tokens(source));
    assert_eq!(kept, tokens("use a; use b; use c; use d;"));
    assert_eq!(files, ["far"]);
}
