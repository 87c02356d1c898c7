"""The proper nouns of the named styles, invented, so that no name says anything of its style."""

_NAMES = """
    elsine caonde thadane mardane belela jesanth seldale barine meronde jesette dedane
    oronde versine elanth mondale feine thaette caine selorne linance belesta tororne
    lenesta merarne halorne coresta arrith cordane orine perorne lenine doranth linesta
    dorwen fedane vanwen dorrith monela linorne deesta bardale feance merance monsine
    shadale linsine torsine lenela shadane selsine thawen garsine coronde verine arela
    maresta torance linette dorine garonde doresta arance marance barorne hesesta hesrith
    perine monesta hesance feonde dorsine corwen merela orrith halrith deonde gardane
    garesta shaesta deine feela verrith hesette selette belsine maronde thaonde monanth
    bardane vanarne halsine sharith lenette selonde verorne hesine maranth linwen orwen
    belonde mararne dedale marrith corine mononde falwen merrith halance falance belrith
    seldane peronde shaorne shaanth gardale marsine beline elette torine thadale jesdane
    torrith monance bararne caance belarne monorne dewen thasine arine baresta halwen aranth
    elela eline dordane jeswen selela perwen lendale linine baranth monarne barance shaette
    vandale eldane thaorne marine hesonde faldane aresta merwen caorne lenanth faline
    belance linela hesela thaance monrith corsine linonde lenarne lensine dorarne falette
    jesesta monine merine merdale ardale jesance falonde garance ferith toresta verette
    jessine falesta faldale cadale marette hessine lindale caette shasine feette shaine
    marorne baronde garrith falarne dorette elwen ordane casine jesrith caarne dororne
    deorne orance shaonde verdale caanth veronde dorance veranth orsine marela garela
    thaanth thaesta arette garwen orette shawen tharith derith falrith corarne cawen jesorne
    falela barela falanth halesta vandane elesta shaance shaela marwen linanth selrith
    garorne falsine mardale jesdale arsine deela
"""
STYLE_NAMES: tuple[str, ...] = tuple(_NAMES.split())
