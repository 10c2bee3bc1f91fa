//! Cells of a foreign table: images, labels, text and numbers in the types that writers choose for them.

use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::{
        DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
        UInt32Type, UInt64Type,
    },
};

/// The labels of one row: names, or numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Labelled {
    #[default]
    Not,
    Names(Vec<String>),
    Numbers(Vec<i64>),
}

impl Labelled {
    pub fn names(&self) -> impl Iterator<Item = &String> {
        if let Self::Names(names) = self { names.iter() } else { [].iter() }
    }

    pub fn numbers(&self) -> impl Iterator<Item = i64> {
        let numbers = if let Self::Numbers(numbers) = self { numbers.as_slice() } else { &[] };
        numbers.iter().copied()
    }
}

/// All numbers among cells.
pub fn whole_numbers<'a>(cells: impl Iterator<Item = &'a Labelled>) -> impl Iterator<Item = i64> {
    cells.flat_map(Labelled::numbers)
}

/// Whether a column of that type holds lists of images.
///
/// # Errors
/// In words: what it is instead.
pub fn check_images(t: &DataType) -> Result<(), String> {
    let binary = |t: &DataType| matches!(t, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
    let inner = match t {
        DataType::List(inner) | DataType::LargeList(inner) => inner.data_type(),
        _ => return Err(format!("is {t}, not a list of encoded images")),
    };
    match inner {
        t if binary(t) => Ok(()),
        DataType::Struct(fields) if fields.iter().any(|f| f.name() == "bytes" && binary(f.data_type())) => {
            Ok(())
        }
        _ => {
            Err(format!("is a list of {inner}, not of binary or of structs with the binary field \"bytes\""))
        }
    }
}

/// The images of a column's first row, whose type was checked.
///
/// # Errors
/// In words: null, or an image without bytes.
pub fn images(column: &ArrayRef) -> Result<Vec<&[u8]>, String> {
    if column.is_empty() || column.is_null(0) {
        return Err("its cell is null".into());
    }
    let (values, range) = if let Some(list) = column.as_list_opt::<i32>() {
        (list.values(), list.value_offsets()[0] as usize..list.value_offsets()[1] as usize)
    } else if let Some(list) = column.as_list_opt::<i64>() {
        (list.values(), list.value_offsets()[0] as usize..list.value_offsets()[1] as usize)
    } else {
        return Err(format!("its cell is {}", column.data_type()));
    };
    let values = match values.as_struct_opt() {
        Some(s) => s.column_by_name("bytes").ok_or("it has no field \"bytes\"")?,
        None => values,
    };
    let mut found = Vec::with_capacity(range.len());
    for (place, i) in range.enumerate() {
        let bytes = if values.is_null(i) {
            None
        } else if let Some(a) = values.as_binary_opt::<i32>() {
            Some(a.value(i))
        } else if let Some(a) = values.as_binary_opt::<i64>() {
            Some(a.value(i))
        } else {
            values.as_binary_view_opt().map(|a| a.value(i))
        };
        found.push(bytes.ok_or(format!("image {place} has no bytes (only a path, perhaps)"))?);
    }
    Ok(found)
}

/// Labels, a row each: names, whole numbers, or lists of either.
///
/// # Errors
/// In words: the column's type.
pub fn label_cells(column: &ArrayRef) -> Result<Vec<Labelled>, String> {
    let list = |range: std::ops::Range<usize>, values: &ArrayRef| {
        Ok::<_, String>(label_cells(&values.slice(range.start, range.len()))?.into_iter().fold(
            Labelled::Not,
            |all, one| match (all, one) {
                (Labelled::Names(mut a), Labelled::Names(b)) => {
                    a.extend(b);
                    Labelled::Names(a)
                }
                (Labelled::Numbers(mut a), Labelled::Numbers(b)) => {
                    a.extend(b);
                    Labelled::Numbers(a)
                }
                (all, Labelled::Not) => all,
                (_, one) => one,
            },
        ))
    };
    let range = |offsets: (usize, usize)| offsets.0..offsets.1;
    (0..column.len())
        .map(|i| {
            if column.is_null(i) {
                return Ok(Labelled::Not);
            }
            if let Some(l) = column.as_list_opt::<i32>() {
                let o = l.value_offsets();
                return list(range((o[i] as usize, o[i + 1] as usize)), l.values());
            }
            if let Some(l) = column.as_list_opt::<i64>() {
                let o = l.value_offsets();
                return list(range((o[i] as usize, o[i + 1] as usize)), l.values());
            }
            if let Some(text) = text(column, i) {
                let named = !text.is_empty();
                return Ok(if named { Labelled::Names(vec![text.into()]) } else { Labelled::Not });
            }
            let n = whole_number(column, i);
            n.map(|n| Labelled::Numbers(vec![n]))
                .ok_or_else(|| format!("is {}, neither text nor whole numbers", column.data_type()))
        })
        .collect()
}

/// Text, a row each; whole numbers are written out.
///
/// # Errors
/// In words: the column's type.
pub fn text_cells(column: &ArrayRef) -> Result<Vec<Option<String>>, String> {
    (0..column.len())
        .map(|i| match (column.is_null(i), text(column, i), whole_number(column, i)) {
            (true, ..) => Ok(None),
            (_, Some(text), _) => Ok(Some(text.into())),
            (_, _, Some(n)) => Ok(Some(n.to_string())),
            _ => Err(format!("is {}, not text", column.data_type())),
        })
        .collect()
}

/// Numbers, a row each.
///
/// # Errors
/// In words: the column's type.
pub fn numbers(column: &ArrayRef) -> Result<Vec<Option<f64>>, String> {
    (0..column.len())
        .map(|i| {
            if column.is_null(i) {
                return Ok(None);
            }
            let real = column.as_primitive_opt::<Float64Type>().map(|a| a.value(i));
            let real = real.or_else(|| column.as_primitive_opt::<Float32Type>().map(|a| a.value(i).into()));
            let number = real.or_else(|| whole_number(column, i).map(|n| n as f64));
            number.map(Some).ok_or_else(|| format!("is {}, not numbers", column.data_type()))
        })
        .collect()
}

fn text(column: &ArrayRef, i: usize) -> Option<&str> {
    if let Some(a) = column.as_string_opt::<i32>() {
        return Some(a.value(i));
    }
    if let Some(a) = column.as_string_opt::<i64>() {
        return Some(a.value(i));
    }
    column.as_string_view_opt().map(|a| a.value(i))
}

fn whole_number(column: &ArrayRef, i: usize) -> Option<i64> {
    macro_rules! first_of {
        ($($t:ty),*) => {$(
            if let Some(a) = column.as_primitive_opt::<$t>() {
                return i64::try_from(a.value(i)).ok();
            }
        )*};
    }
    first_of!(Int64Type, Int32Type, Int16Type, Int8Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type);
    None
}
