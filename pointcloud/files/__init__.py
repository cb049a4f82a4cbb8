"""Users' own meshes and clouds: found, read, classified or cut into parts, and written.

user_files       which files a command line means; meshes: what each of them holds, as points
streaming        many files in bounded memory
prediction       their classes; segmentation: their parts
answers          tables and JSON; segmented_files: PLY (ply), PNG and the interactive page (viewer, viewer.html)
"""
