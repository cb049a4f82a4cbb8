"""What both training loops share, one job a file.

seeding      stateless randomness: every draw follows from (seed, what for, when)
files        files that are either old or new, never half
checkpoint   exact resume
run_folder   one folder a run; a changed configuration is refused
progress     bar, metrics.jsonl, TensorBoard
interrupt    Ctrl-C saves
weights      one self-describing .safetensors
records      results as evidence
results      tables and figures from records; result_tables: the tables of single ones
ablation     one record from runs that differ in one field
options      name=value pairs of a command line
download     archives with checksum, mirrors and resume
processes    what several of them share: batches, random draws, sums; synchronised_norms: batch norm over all
launch       device and precision through Lightning Fabric
"""
