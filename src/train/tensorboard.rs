//! Event files as TensorBoard reads them: TFRecord framing around `Event` messages of its protocol buffers, of which only
//! scalars are written.

use std::io::Write;
use std::path::{Path, PathBuf};

use web_time::{SystemTime, UNIX_EPOCH};

use crate::files::{self, File};
use crate::{Error, Result};

/// An event file, open for scalars.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Makes a new file in `dir`; a resumed run adds one of its own, and TensorBoard shows them as one.
    ///
    /// # Errors
    /// A directory that cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        let now = wall_time();
        let path = dir.join(format!("events.out.tfevents.{}.loraine.{}", now as u64, files::writer_id()));
        let file = files::create_new(&path).map_err(|e| Error::file(&path, format!("cannot be written: {e}")))?;
        let mut events = Self { path, file };
        // Event { wall_time = 1, file_version = 3 }
        let version = [tag_double(1, now), tag_bytes(3, b"brain.Event:2")].concat();
        events.write(&version)?;
        Ok(events)
    }

    /// Adds the values of one step.
    ///
    /// # Errors
    /// A full disk.
    pub fn scalars(&mut self, step: usize, values: &[(String, f64)]) -> Result<()> {
        // Summary.Value { tag = 1, simple_value = 2 }; Summary { value = 1 }; Event { wall_time = 1, step = 2, summary = 5 }
        let value = |(tag, value): &(String, f64)| {
            tag_bytes(1, &[tag_bytes(1, tag.as_bytes()), tag_float(2, *value as f32)].concat())
        };
        let summary: Vec<u8> = values.iter().flat_map(value).collect();
        let event = [tag_double(1, wall_time()), tag_varint(2, step as u64), tag_bytes(5, &summary)].concat();
        self.write(&event)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &masked(&length).to_le_bytes(), event, &masked(event).to_le_bytes()].concat();
        let written = self.file.write_all(&record).and_then(|()| self.file.flush());
        written.map_err(|e| Error::file(&self.path, format!("cannot be written: {e}")))
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// TFRecord's checksum: CRC-32C, rotated and shifted so that a checksum of checksums stays one.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn key(field: u64, wire_type: u64) -> Vec<u8> {
    varint(field << 3 | wire_type)
}

fn tag_varint(field: u64, value: u64) -> Vec<u8> {
    [key(field, 0), varint(value)].concat()
}

fn tag_double(field: u64, value: f64) -> Vec<u8> {
    [key(field, 1), value.to_le_bytes().to_vec()].concat()
}

fn tag_bytes(field: u64, bytes: &[u8]) -> Vec<u8> {
    [key(field, 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn tag_float(field: u64, value: f32) -> Vec<u8> {
    [key(field, 5), value.to_le_bytes().to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_bytes_that_the_formats_prescribe() {
        // CRC-32C of "123456789" is its published check value.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(varint(300), [0xac, 0x02]);
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path()).unwrap();
        events.scalars(300, &[("train/loss".to_owned(), 2.5)]).unwrap();
        let bytes = std::fs::read(&events.path).unwrap();
        let first = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let second = &bytes[16 + first..];
        let length = u64::from_le_bytes(second[..8].try_into().unwrap()) as usize;
        assert_eq!(second.len(), 16 + length);
        let event = &second[12..12 + length];
        assert_eq!(
            event[9..],
            [&[0x10, 0xac, 0x02, 0x2a, 19, 0x0a, 17, 0x0a, 10][..], b"train/loss", &[0x15, 0, 0, 0x20, 0x40]].concat()
        );
        let checksum = u32::from_le_bytes(second[12 + length..].try_into().unwrap());
        assert_eq!(checksum.wrapping_sub(0xa282_ead8).rotate_left(15), crc32c::crc32c(event));
    }
}
