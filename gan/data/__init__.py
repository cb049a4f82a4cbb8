"""Real images, from files to batches.

datasets       the images of a name or path; releases: public archives as they are downloaded
files, hdf5, parquet, packed   the forms they come in; source: what those share
decoding       one image; decoded: all of them at once, cached; streamed: when they are needed
batches        which images a step sees
"""
