//! Reads a Rust source as far as the house rules need it: a file is reduced to its code (comments and literals
//! blanked), the code to what is shipped (nothing under `#[cfg(test)]`), and that to the paths it names, with `use`
//! trees expanded. No parser crate: the rules are about names, and names are all that this recognises.

pub struct Source {
    /// Relative to the repository, with `/`.
    pub path: String,
    pub text: String,
    /// The text without comments and literals; lines stay where they are.
    pub code: String,
    /// The code without what is compiled for tests only; empty if that is the whole file.
    pub shipped: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let code = code_of(text);
        let is_test = path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/");
        let shipped = if is_test { String::new() } else { without_tests(&code) };
        Source { path: path.into(), text: text.into(), code, shipped }
    }

    /// `crate::paxos::log` as `["paxos", "log"]`; empty for lib.rs and for what lies outside `src/`.
    pub fn module(&self) -> Vec<&str> {
        let Some(path) = self.path.strip_prefix("src/").and_then(|p| p.strip_suffix(".rs")) else {
            return Vec::new();
        };
        path.split('/').filter(|part| !matches!(*part, "mod" | "lib")).collect()
    }

    pub fn top_module(&self) -> &str {
        self.module().first().copied().unwrap_or("")
    }

    pub fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }
}

/// Blanks comments and the insides of string and character literals.
pub fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut code = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = if at(i) == '/' && at(i + 1) == '/' {
            (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len())
        } else if at(i) == '/' && at(i + 1) == '*' {
            end_of_block_comment(&chars, i)
        } else if let Some(end) = end_of_literal(&chars, i) {
            end
        } else {
            code.push(at(i));
            i += 1;
            // A whole word at a time, so that the r of a raw string is not looked for inside a name.
            while at(i - 1).is_alphanumeric() | (at(i - 1) == '_')
                && (at(i).is_alphanumeric() || at(i) == '_')
            {
                code.push(at(i));
                i += 1;
            }
            continue;
        };
        code.extend(chars[i..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        i = end;
    }
    code
}

fn end_of_block_comment(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut i = start;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

/// The end of the string or character literal that begins at `start`, if one does.
fn end_of_literal(chars: &[char], start: usize) -> Option<usize> {
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut i = start;
    while matches!(at(i), 'b' | 'c' | 'r') && i < start + 2 {
        i += 1;
    }
    let raw = i > start && at(i - 1) == 'r';
    if raw {
        let hashes = (i..).take_while(|&j| at(j) == '#').count();
        if at(i + hashes) != '"' {
            return None;
        }
        let closes = |j: usize| at(j) == '"' && (1..=hashes).all(|k| at(j + k) == '#');
        let last = (i + hashes + 1..chars.len()).find(|&j| closes(j));
        return Some(last.map_or(chars.len(), |j| j + hashes + 1));
    }
    let quote = at(i);
    // A lifetime has no closing quote after one character.
    let is_char = quote == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'');
    if quote != '"' && !is_char {
        return None;
    }
    i += 1;
    while i < chars.len() && at(i) != quote {
        i += if at(i) == '\\' { 2 } else { 1 };
    }
    Some((i + 1).min(chars.len()))
}

/// Blanks every item under `#[cfg(test)]`, up to its closing brace or semicolon.
pub fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut shipped = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find(MARK) {
        shipped.push_str(&rest[..start]);
        let mut depth = 0;
        let end = rest[start + MARK.len()..].char_indices().find_map(|(i, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            (depth == 0 && matches!(c, '}' | ';')).then_some(start + MARK.len() + i + 1)
        });
        let end = end.unwrap_or(rest.len());
        shipped.extend(rest[start..end].chars().filter(|c| *c == '\n'));
        rest = &rest[end..];
    }
    shipped + rest
}

#[derive(Debug, PartialEq)]
pub struct Named {
    pub line: usize,
    pub path: Vec<String>,
    pub in_use: bool,
}

/// Words, `::` and single characters, each with its line.
pub fn tokens(code: &str) -> Vec<(usize, String)> {
    let mut tokens: Vec<(usize, String)> = Vec::new();
    let (mut line, mut joins) = (1, false);
    let mut rest = code.chars().peekable();
    while let Some(c) = rest.next() {
        let is_word = c.is_alphanumeric() || c == '_';
        match tokens.last_mut() {
            Some((_, last)) if joins && is_word => last.push(c),
            _ if c == ':' && rest.next_if_eq(&':').is_some() => tokens.push((line, "::".into())),
            _ if !c.is_whitespace() => tokens.push((line, c.into())),
            _ => {}
        }
        joins = is_word;
        line += usize::from(c == '\n');
    }
    tokens
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// All paths that the code names; a `use` of a tree gives one path per leaf.
pub fn paths(code: &str) -> Vec<Named> {
    let tokens = tokens(code);
    let word = |i: usize| tokens.get(i).map_or("", |(_, t)| t.as_str());
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if word(i) == "use" && word(i + 1) != "<" {
            i = use_tree(&tokens, i + 1, &[], &mut found);
        } else if is_word(word(i)) && word(i.wrapping_sub(1)) != "." {
            let line = tokens[i].0;
            let mut path = vec![word(i).to_string()];
            while word(i + 1) == "::" && is_word(word(i + 2)) {
                path.push(word(i + 2).into());
                i += 2;
            }
            found.push(Named { line, path, in_use: false });
            i += 1;
        } else {
            i += 1;
        }
    }
    found
}

/// Reads one branch of a `use` tree below `prefix`; returns where it ends.
fn use_tree(tokens: &[(usize, String)], mut i: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    let mut path = prefix.to_vec();
    let mut is_leaf = true;
    while let Some((line, token)) = tokens.get(i) {
        match token.as_str() {
            "::" => i += 1,
            // The new name says nothing about what is imported.
            "as" => i += 2,
            "{" => {
                is_leaf = false;
                while tokens.get(i).is_some_and(|(_, t)| t != "}" && t != ";") {
                    i = use_tree(tokens, i + 1, &path, found);
                }
                i += 1;
            }
            "," | "}" | ";" => {
                if is_leaf && path.len() > prefix.len() {
                    found.push(Named { line: *line, path, in_use: true });
                }
                return i;
            }
            "self" if !path.is_empty() => {
                found.push(Named { line: *line, path: path.clone(), in_use: true });
                is_leaf = false;
                i += 1;
            }
            name => {
                path.push(name.into());
                i += 1;
            }
        }
    }
    i
}
