"""Public data sets: downloaded, read as they are released, and converted to the .npz layout.

archives            where each is downloaded from: a table
readable            which releases are recognised in a folder or zip, and what reads them: a table
modelnet, resampled_modelnet, hdf5_clouds, shapenetpart    one release each; text_clouds: files of x y z
file_source         a folder or a zip, read alike
preparation         scripts/prepare_data.py's work; conversion: one function over many files, in parallel
"""
