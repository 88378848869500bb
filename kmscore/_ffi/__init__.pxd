# Declarations of the C libraries, one file per library; nothing here is compiled.
