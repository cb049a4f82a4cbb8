"""What `scripts/sample_gan.py` draws.

options         its flags, and the form that --out asks for
output          one call: from weights to a grid, a film or a folder
grids, films, folder   the three forms
interpolation   ways from seed to seed and class to class
animation       frames to GIF and MP4
"""
