//! loraine
