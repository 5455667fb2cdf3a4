//! Writes a file of a teacher's log-probabilities row by row; see [`super::teacher`] for its layout.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::f16;
use serde_json::{Map, json};

use super::Example;
use super::teacher::{
    INPUT_IDS, LOGPROBS, POSITIONS, RECORD_OFFSETS, ROW_OFFSETS, TOKEN_IDS, TeacherFacts, trained_places,
};
use crate::files::{self, File};
use crate::{Error, Result};

/// A token that is none, where a row has fewer.
const NO_TOKEN: i32 = -1;

/// A file that is being written beside its place. It takes the place when it is complete, and goes when it is dropped before.
pub struct TeacherWriter {
    path: PathBuf,
    beside: PathBuf,
    file: File,
    top_k: usize,
    rows: usize,
    written: usize,
    /// Places in the file of the tokens and of the log-probabilities.
    at: [u64; 2],
    is_complete: bool,
}

impl TeacherWriter {
    /// Begins a file for the trained tokens of `examples`, with `top_k` tokens for each.
    ///
    /// # Errors
    /// A place that cannot be written.
    pub fn create(path: &Path, facts: &TeacherFacts, examples: &[Example], top_k: usize) -> Result<Self> {
        let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| Error::file(path, "is not a file name"))?;
        let beside = path.with_file_name(format!(".{name}.part"));
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        let (mut record_offsets, mut row_offsets) = (vec![0u64], vec![0u64]);
        for example in examples {
            tokens.extend_from_slice(&example.input_ids);
            positions.extend(trained_places(example).map(|place| place as u32));
            record_offsets.push(tokens.len() as u64);
            row_offsets.push(positions.len() as u64);
        }
        let rows = positions.len();
        let small: [(&str, &str, usize, &[u8]); 4] = [
            (RECORD_OFFSETS, "I64", record_offsets.len(), bytemuck::cast_slice(&record_offsets)),
            (ROW_OFFSETS, "I64", row_offsets.len(), bytemuck::cast_slice(&row_offsets)),
            (INPUT_IDS, "I32", tokens.len(), bytemuck::cast_slice(&tokens)),
            (POSITIONS, "I32", positions.len(), bytemuck::cast_slice(&positions)),
        ];
        let mut header = Map::new();
        let facts = serde_json::to_value(facts).map_err(|e| Error::file(path, e))?;
        header.insert("__metadata__".to_owned(), facts);
        let mut end = 0;
        let mut place = |header: &mut Map<_, _>, name: &str, dtype: &str, shape: &[usize], bytes: u64| {
            header
                .insert(name.to_owned(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes] }));
            end += bytes;
            end - bytes
        };
        for (name, dtype, count, bytes) in small {
            place(&mut header, name, dtype, &[count], bytes.len() as u64);
        }
        let values = (rows * top_k) as u64;
        let at_ids = place(&mut header, TOKEN_IDS, "I32", &[rows, top_k], 4 * values);
        let at_logprobs = place(&mut header, LOGPROBS, "F16", &[rows, top_k], 2 * values);
        let mut header = serde_json::Value::Object(header).to_string();
        // The data begin at a multiple of 8 bytes.
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let data = 8 + header.len() as u64;
        let write = || -> io::Result<File> {
            let mut file = files::create_new(&beside)?;
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())?;
            small.iter().try_for_each(|(_, _, _, bytes)| file.write_all(bytes))?;
            file.set_len(data + at_logprobs + 2 * values)?;
            Ok(file)
        };
        let file = write().map_err(|e| {
            let _ = files::remove_file(&beside);
            Error::file(path, format!("cannot be written: {e}"))
        })?;
        let at = [data + at_ids, data + at_logprobs];
        Ok(Self { path: path.to_owned(), beside, file, top_k, rows, written: 0, at, is_complete: false })
    }

    /// Writes the next rows: for each its tokens with their log-probabilities, the likeliest first, as many as the file has or fewer.
    ///
    /// # Errors
    /// More rows or tokens than the file is for, or a disk that is full.
    pub fn add(&mut self, rows: &[Vec<(u32, f32)>]) -> Result<()> {
        if self.written + rows.len() > self.rows || rows.iter().any(|row| row.len() > self.top_k) {
            let problem = format!("has {} rows of {} tokens, and more were given", self.rows, self.top_k);
            return Err(Error::file(&self.path, problem));
        }
        let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
        for (at, row) in (1..).zip(rows) {
            for (id, logprob) in row {
                ids.push(*id as i32);
                logprobs.push(f16::from_f32(logprob.min(0.0)));
            }
            ids.resize(at * self.top_k, NO_TOKEN);
            logprobs.resize(at * self.top_k, f16::NEG_INFINITY);
        }
        let first = (self.written * self.top_k) as u64;
        let mut write = |at: u64, bytes: &[u8]| -> io::Result<()> {
            self.file.seek(SeekFrom::Start(at))?;
            self.file.write_all(bytes)
        };
        write(self.at[0] + 4 * first, bytemuck::cast_slice(&ids))
            .and_then(|()| write(self.at[1] + 2 * first, bytemuck::cast_slice(&logprobs)))
            .map_err(|e| Error::file(&self.path, format!("cannot be written: {e}")))?;
        self.written += rows.len();
        Ok(())
    }

    /// Puts the complete file in its place.
    ///
    /// # Errors
    /// Rows that are missing, or a place that cannot be written.
    pub fn finish(mut self) -> Result<()> {
        if self.written != self.rows {
            let problem = format!("needs {} rows, but has {}", self.rows, self.written);
            return Err(Error::file(&self.path, problem));
        }
        let place = || -> io::Result<()> {
            self.file.sync_all()?;
            files::rename(&self.beside, &self.path)?;
            files::sync_directory(self.path.parent().unwrap_or(Path::new("")))
        };
        place().map_err(|e| Error::file(&self.path, format!("cannot be written: {e}")))?;
        self.is_complete = true;
        Ok(())
    }
}

impl Drop for TeacherWriter {
    fn drop(&mut self) {
        if !self.is_complete {
            let _ = files::remove_file(&self.beside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batches::MicroBatch;
    use super::super::teacher::{FORMAT, TeacherFile, VERSION};
    use super::*;

    fn example(ids: &[u32], prompt: usize) -> Example {
        Example::new(ids.to_vec(), (0..ids.len()).map(|at| at >= prompt).collect())
    }

    fn facts() -> TeacherFacts {
        let of = str::to_owned;
        TeacherFacts {
            format: of(FORMAT),
            version: of(VERSION),
            vocabulary: of("v"),
            teacher: of("big"),
            data: of("d.jsonl"),
            ..TeacherFacts::default()
        }
    }

    /// A file for the examples `1 2 3 4`, of which two tokens are trained, and `5 6`.
    fn written(path: &Path) -> Vec<Example> {
        let examples = vec![example(&[1, 2, 3, 4], 2), example(&[5, 6], 0)];
        let mut writer = TeacherWriter::create(path, &facts(), &examples, 2).unwrap();
        writer.add(&[vec![(3, -0.125), (7, -2.25)], vec![(4, 0.0)]]).unwrap();
        writer.add(&[vec![(0, -1.0), (6, -1.5)]]).unwrap();
        writer.finish().unwrap();
        examples
    }

    #[test]
    fn rows_come_back_to_their_labels_in_any_order_and_after_cutting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let examples = written(&path);
        let file = TeacherFile::open(&path, "v", 8).unwrap();
        assert_eq!((file.rows(), file.top_k, file.facts.clone()), (3, 2, facts()));
        file.check_examples(&examples, Path::new("d.jsonl"), "").unwrap();
        let mut batch = MicroBatch::default();
        let cut = example(&[1, 2, 3], 2);
        for example in [&examples[1], &examples[0], &cut] {
            batch.add(example, false, [0.0; 2]);
            file.add_rows(&mut batch, example, 1.0).unwrap();
        }
        assert_eq!(batch.labels, [6, 3, 4, 3]);
        assert_eq!(batch.teacher.ids, [0, 6, 3, 7, 4, u32::MAX, 3, 7]);
        let of = |a: f32, b: f32| [a.exp() / (a.exp() + b.exp()), b.exp() / (a.exp() + b.exp())];
        let [first, second] = [of(-1.0, -1.5), of(-0.125, -2.25)];
        for (p, want) in batch.teacher.probabilities.iter().zip([first, second, [1.0, 0.0], second].concat()) {
            assert!((p - want).abs() < 1e-6, "{:?}", batch.teacher);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let examples = written(&path);
        let message =
            |vocabulary: &str, vocab_size| TeacherFile::open(&path, vocabulary, vocab_size).unwrap_err().to_string();
        assert!(message("w", 8).contains("another vocabulary"), "{}", message("w", 8));
        assert!(message("v", 7).contains("`token_ids`: row 0 has the token 7"), "{}", message("v", 7));
        let file = TeacherFile::open(&path, "v", 8).unwrap();
        let refusal = |example: Example, template: &str| {
            file.check_examples(&[examples[0].clone(), example], Path::new("e.jsonl"), template)
                .unwrap_err()
                .to_string()
        };
        let other = refusal(example(&[5, 7], 0), "");
        assert!(other.contains("token 1 of example 2 of e.jsonl") && other.contains("other data (d.jsonl)"), "{other}");
        let template = refusal(example(&[5, 7], 0), "{{ x }}");
        assert!(template.contains("another chat template"), "{template}");
        // More of the example is trained than the teacher has rows for.
        assert!(refusal(example(&[1, 2, 3, 4], 1), "").contains("token 1 of example 2"));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert!(message("v", 8).contains("cut short"), "{}", message("v", 8));
        let mut spoiled = whole.clone();
        let end = spoiled.len();
        spoiled[end - 2..].copy_from_slice(&f16::NAN.to_le_bytes());
        std::fs::write(&path, &spoiled).unwrap();
        assert!(message("v", 8).contains("`logprobs`: row 2"), "{}", message("v", 8));
        std::fs::write(&path, b"\x02\0\0\0\0\0\0\0{}").unwrap();
        assert!(message("v", 8).contains("no file of a teacher"), "{}", message("v", 8));
    }

    #[test]
    fn a_file_that_is_not_complete_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let mut writer = TeacherWriter::create(&path, &facts(), &[example(&[1, 2, 3], 1)], 1).unwrap();
        writer.add(&[vec![(2, 0.0)]]).unwrap();
        assert!(writer.finish().unwrap_err().to_string().contains("needs 2 rows, but has 1"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut writer = TeacherWriter::create(&path, &facts(), &[example(&[1, 2], 1)], 1).unwrap();
        assert!(writer.add(&[vec![(2, 0.0), (3, -1.0)]]).is_err());
    }
}
